"""Verdicts on whether a belief is right: calibration, distance from the reference, what it predicts."""

import numpy as np
import xarray as xr

from bayesmeta.diagnostics.calibration import ALPHA
from bayesmeta.diagnostics.distances import k_hat_threshold
from bayesmeta.diagnostics.latent import is_functional, is_point, latent_names
from bayesmeta.diagnostics.results import array, attribute
from bayesmeta.diagnostics.tables import few
from bayesmeta.diagnostics.uniformity import holm, p_value
from bayesmeta.diagnostics.words import Verdict

_SHOWN = (
    *("nll", "crps", "coverage_50", "coverage_80", "coverage_95", "ece", "mce"),
    *("epistemic_sd", "aleatoric_sd", "mutual_information"),
)
_NAMED = 4  # quantities named one by one
_REMEDIES = {
    "narrow": "too narrow: its standard deviations would have to be {0:.2f} times as large. It is over-confident; with "
    "a learned encoder, train longer or on more tasks, and include the prior as a factor.",
    "wide": "too wide: its standard deviations would have to be {0:.2f} times as large. It does not use the data as "
    "well as it could; train longer, or give the encoder more capacity.",
    "biased": "biased, by {0:.2f} of its own standard deviations on average in its worst coordinate. Check units and "
    "the order of the data, and train longer.",
    "ignores": "wrong in a way that no coordinate shows alone: the belief ignores the data, or some of them, or the "
    "dependence between coordinates. Compare its contraction with the reference's, and use a full covariance.",
    "shape": "right in mean and width and wrong in shape: a skewed or multi-modal posterior that a simpler law stands "
    "for. Use a richer family, or particles.",
    "certain": "a point in some of its coordinates: certain where it should not be.",
}


def correctness(tree: xr.DataTree) -> list[Verdict]:
    """Every verdict on correctness that the results allow."""
    found = []
    if "prior_sbc" in tree.children and "decoded" in tree["prior_sbc"].data_vars:
        found.append(_decoded(tree))
    elif is_point(tree) and ("prior_sbc" in tree.children or is_functional(tree)):
        found.append(_point(tree))
    elif "prior_sbc" in tree.children:
        found += [_calibrated(tree), *_coverage(tree)]
    if "distance" in tree.children or attribute(tree, "reference_rejected"):
        found.append(_distance(tree))
    if "k_hat" in tree["fit_stats"].data_vars:
        found.append(_correctable(tree))
    if "predictive" in tree.children:
        found += _predictions(tree)
    if "ood" in tree.children:
        found.append(_unlike(tree))
    return found


def _point(tree: xr.DataTree) -> Verdict:
    predicted = "the answer below" if "predictive" in tree.children else "held-out data"
    return Verdict(
        "Is the belief calibrated?",
        "failed",
        "a single value per task, standard deviation 0: it holds the truth in 0 % of the tasks, and says 100 %",
        "The belief is a point, a best guess without an error bar, and truths never fall in a point. More training "
        "does not change that. What can be calibrated are its predictions, by the noise that the model has learned: "
        f"see {predicted}. For an error bar take a method whose belief has a width.",
    )


def rejected_quantities(tree: xr.DataTree) -> dict[str, list[int]]:
    """Quantities whose ranks are not uniform, each with the context sizes; family-wise failure rate 1e-3 (Holm)."""
    group = tree["calibration"].to_dataset()
    steps, names = group["context_step"].to_numpy(), group["quantity"].to_numpy()
    rejected = holm(group["p_value"].to_numpy(), ALPHA)
    return {_name(tree, n): steps[rejected[:, q]].tolist() for q, n in enumerate(names) if rejected[:, q].any()}


def _name(tree: xr.DataTree, quantity: str) -> str:
    """What a ranked quantity is called: coordinates of the latent by their own names."""
    digits = str(quantity).removeprefix("z")
    return latent_names(tree)[int(digits)] if digits.isdigit() else str(quantity)


def _calibrated(tree: xr.DataTree) -> Verdict:
    rejected = rejected_quantities(tree)
    question = "Is the belief calibrated?"
    p = tree["calibration"]["p_value"].to_numpy()
    worst = np.unravel_index(np.nanargmin(p), p.shape)
    name = _name(tree, array(tree, "calibration", "quantity")[worst[1]])
    step = array(tree, "calibration", "context_step")[worst[0]]
    found = (
        f"{p.size} tests of ranks, {p.shape[1]} quantities at {p.shape[0]} context sizes; the worst is {name} after "
    )
    found += f"{step} data, p = {p[worst]:.2g}"
    if not rejected:
        meaning = "Truths fall in the belief as often as it says, for every quantity, as they would if it were exact."
        return Verdict(question, "passed", found, meaning)
    found = f"not uniform: {_listed(rejected)} data"
    return Verdict(question, "failed", found, f"The belief is {_fault(tree, rejected)}")


def _listed(rejected: dict[str, list[int]]) -> str:
    """Quantities with their context sizes, those with the same sizes together."""
    together: dict[tuple[int, ...], list[str]] = {}
    for name, steps in rejected.items():
        together.setdefault(tuple(steps), []).append(name)
    parts = []
    for sizes, names in together.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        parts.append(f"{', '.join(names[:_NAMED])}{more} after {', '.join(map(str, sizes))}")
    others = sum(map(len, list(together.values())[_NAMED:]))
    return "; ".join([*parts[:_NAMED], *([f"{others} more after other numbers of"] if others else [])])


def _fault(tree: xr.DataTree, rejected: dict[str, list[int]]) -> str:
    """What is wrong, judged by the z-scores at the context sizes where ranks are rejected, beyond their own noise."""
    if "z_score" not in tree["fit_stats"].data_vars:
        return _REMEDIES["certain"]
    sizes = sorted({step for steps in rejected.values() for step in steps})
    scores = array(tree, "fit_stats", "z_score")[np.isin(_steps(tree), sizes)]
    tasks = scores.shape[1]
    bias = np.abs(scores.mean(1)).max()
    widths = np.log(np.maximum(scores.std(1), 1e-12))
    width = widths.flat[np.abs(widths).argmax()]
    reasons = []
    if bias > max(0.1, 4 / np.sqrt(tasks)):
        reasons.append(_REMEDIES["biased"].format(bias))
    if abs(width) > max(0.05, 4 / np.sqrt(2 * tasks)):
        reasons.append(_REMEDIES["narrow" if width > 0 else "wide"].format(np.exp(width)))
    if not reasons:
        coordinates = not rejected.keys().isdisjoint(latent_names(tree))
        reasons.append(_REMEDIES["shape" if coordinates else "ignores"])
    return " It is also ".join(reasons)


def _coverage(tree: xr.DataTree) -> list[Verdict]:
    if "coverage" not in tree["calibration"].data_vars:
        return []
    group = tree["calibration"].to_dataset()
    levels, covered = group["level"].to_numpy(), group["coverage"].to_numpy()
    worst = np.abs(covered - levels).max()
    shown = ", ".join(
        f"{100 * c:.0f} % of the {100 * p:.0f} % regions" for c, p in zip(covered[-1], levels, strict=True)
    )
    return [
        Verdict(
            "How often do its highest-density regions hold the truth?",
            "note",
            f"after {_steps(tree)[-1]} data {shown}; at most {100 * worst:.0f} points off at any context size",
            "Fewer than the level says: over-confident. More: wider than need be. This alone does not see a belief "
            "that ignores its data.",
        )
    ]


def _decoded(tree: xr.DataTree) -> Verdict:
    rejected = rejected_quantities(tree)
    p = tree["calibration"]["p_value"].to_numpy()
    question = "Is what the belief says of the task calibrated?"
    if not rejected:
        meaning = "True task parameters fall in the decoded belief as often as it says."
        return Verdict(question, "passed", f"smallest of {p.size} p-values {np.nanmin(p):.2g}", meaning)
    return Verdict(
        question,
        "failed",
        f"not uniform: {_listed(rejected)} data; {_tails(tree)}",
        "The width of the belief is not that of its errors. An agent that draws from a belief that is too narrow gives "
        "up exploring too early, one that is too wide goes on for nothing. The weight of the KL term sets the width: a "
        "larger one widens the belief.",
    )


def _tails(tree: xr.DataTree) -> str:
    """How often truths lie outside the central 90 % of the decoded belief, where it should be 10 %."""
    outside = (np.abs(array(tree, "prior_sbc", "decoded")[0] - 0.5) > 0.45).mean((0, 2))
    steps = array(tree, "prior_sbc", "context_step")
    shown = np.unique(np.linspace(0, len(steps) - 1, 4).round().astype(int))
    return "outside the central 90 %: " + ", ".join(f"{100 * outside[c]:.0f} % after {steps[c]}" for c in shown)


def _distance(tree: xr.DataTree) -> Verdict:
    question = "How far is it from the reference posterior?"
    refused = attribute(tree, "reference_rejected")
    if refused:
        return Verdict(question, "invalid", str(refused), "Nothing is said of the belief: the reference is none.")
    group, steps = tree["distance"].to_dataset(), _steps(tree)
    kl = group["kl_reference"].to_numpy().mean(1)
    shown = few(len(steps))
    if np.isfinite(kl).all():
        found = "KL in nats " + ", ".join(f"{kl[c]:.3g} after {steps[c]}" for c in shown)
    else:
        sliced = group["sliced_wasserstein"].to_numpy().mean(1)
        found = "sliced Wasserstein distance in posterior standard deviations "
        found += ", ".join(f"{sliced[c]:.2g} after {steps[c]}" for c in shown)
    sd = group["sd_ratio"].to_numpy()
    ratio = np.exp(np.nanmean(np.log(np.maximum(sd, 1e-12)), axis=(1, 2))) if np.isfinite(sd).any() else None
    if ratio is not None:
        error = np.sqrt(np.nanmean(np.square(group["mean_error"].to_numpy()[-1])))
        found += f" data; after {steps[-1]} its means are {error:.2g} of the reference's standard deviations off, and "
        found += f"its standard deviations {ratio[-1]:.2f} times the reference's"
    return Verdict(question, "note", found, "0 is exact. One standard deviation off in one coordinate is 0.5 nats.")


def _correctable(tree: xr.DataTree) -> Verdict:
    k, draws = array(tree, "fit_stats", "k_hat"), tree["posterior"].sizes["draw"]
    bad = (k > k_hat_threshold(draws)).mean(1)
    worst = int(bad.argmax())
    return Verdict(
        "Could importance weights correct it?",
        "note",
        f"k-hat above {k_hat_threshold(draws):.2f} in {100 * bad[worst]:.0f} % of the tasks after "
        f"{_steps(tree)[worst]} data, in {100 * bad[-1]:.0f} % after {_steps(tree)[-1]}",
        "Where k-hat is high, the belief misses mass of the true posterior, which no reweighting of its draws brings "
        "back.",
    )


def _predictions(tree: xr.DataTree) -> list[Verdict]:
    group = tree["predictive"].to_dataset()
    p = p_value(group["pit"].to_numpy()[:, 0])  # one datum per task: those of one task share its belief's error
    score = dict(zip(group["score"].to_numpy().tolist(), group["value"].to_numpy(), strict=True))
    shown = ", ".join(f"{name.replace('_', ' ')} {score[name]:.3g}" for name in _SHOWN if name in score)
    right = not holm(p, ALPHA).any()
    return [
        Verdict(
            "Are its predictions of unseen data calibrated?",
            "passed" if right else "failed",
            f"p = {np.min(p):.2g}; {shown}",
            "New data of a task fall where the belief expects them, as often as it says."
            if right
            else "New data of a task do not fall where the belief expects them: averaged over the belief, the model's "
            "predictions are biased, too narrow or too wide.",
        )
    ]


def _unlike(tree: xr.DataTree) -> Verdict:
    group = tree["ood"].to_dataset()
    parts = [
        f"{name.replace('_', ' ')} {a:.2f} [{low:.2f}, {high:.2f}]"
        for name, a, low, high in zip(
            *(group[n].to_numpy().tolist() for n in ("scored_by", "auroc", "low", "high")), strict=True
        )
    ]
    return Verdict(
        "Does it notice tasks unlike those it knows?",
        "note",
        f"AUROC of out-of-distribution against test tasks: {'; '.join(parts)}",
        "1 is perfect, 0.5 blind. The spread of a belief is blind where it does not depend on the targets, as in any "
        "linear-Gaussian model; then only surprise can tell.",
    )


def _steps(tree: xr.DataTree) -> np.ndarray:
    return array(tree, "posterior", "context_step")
