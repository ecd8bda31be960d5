"""What the numbers say, as data and in plain words."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from bayesmeta.diagnostics.correctness import correctness
from bayesmeta.diagnostics.decoding import squared_errors, value_errors
from bayesmeta.diagnostics.exploration_verdicts import exploration
from bayesmeta.diagnostics.information import active_dimensions
from bayesmeta.diagnostics.intervals import bootstrap_interval
from bayesmeta.diagnostics.latent import is_functional, is_point, latent_names
from bayesmeta.diagnostics.results import array, parameters
from bayesmeta.diagnostics.words import Verdict

_WIDER = " A product of factors without the prior does: use prior_factor=true."


def verdicts(tree: xr.DataTree) -> list[Verdict]:
    """Every verdict that the results allow.

    Gates of calibration fail at a family-wise rate of 1e-3 where the belief is right; the others compare a 95 %
    bootstrap interval over tasks with their threshold.
    """
    found = [*correctness(tree), _responds(tree) if is_functional(tree) else _collapse(tree)]
    if not is_point(tree):
        found.append(_width(tree))
    if value_errors(tree):
        found.append(_known(tree))
    if "exploration" in tree.children:
        found += exploration(tree)
    elif "trajectory" in tree.children:
        found += [*_adaptation(tree), *_reference(tree)]
    if "decoded" in tree.children:
        found += [_identified(tree), *_efficiency(tree)]
    return found


def passed(found: Sequence[Verdict]) -> bool:
    """Whether no verdict is a failure."""
    return all(verdict.outcome != "failed" for verdict in found)


def table(found: Sequence[Verdict]) -> str:
    """A line per verdict: outcome, question, numbers."""
    width = max(len(verdict.question) for verdict in found)
    return "\n".join(f"{v.outcome:<7} {v.question:<{width}}  {v.found}" for v in found)


def _collapse(tree: xr.DataTree) -> Verdict:
    stats = tree["fit_stats"].dataset
    last, total = stats["kl"].values[-1], stats["kl_total"].values[-1]
    if np.isnan(total).any():
        return Verdict(
            "Does the belief respond to data?",
            "note",
            "the KL divergence of this belief from its prior has no closed form",
            "Point masses and particles have no density; look at the contraction instead.",
        )
    moved = (
        "" if np.isnan(last).any() else f", {int(active_dimensions(last).sum())} of {last.shape[1]} dimensions active"
    )
    alive = total.mean() > 0.01
    return Verdict(
        "Does the belief respond to data?",
        "passed" if alive else "failed",
        f"{total.mean():.2f} nats gained on average{moved}",
        "The posterior moves away from the prior as data come in."
        if alive
        else "The posterior is the prior: the context is ignored (posterior collapse). Lower the KL weight, or check "
        "that the learner's gradient reaches the encoder.",
    )


def _responds(tree: xr.DataTree) -> Verdict:
    """Of a function's values, which have no density: how far their means move against the targets' spread, or by how
    much their variance changes.

    Means of draws move by chance, too, which is taken off.
    """
    means, sds = (array(tree, "fit_stats", name)[[0, -1]].astype(float) for name in ("mean", "sd"))
    chance = np.square(sds).sum(0).mean() / tree["posterior"].sizes["draw"]
    moved = np.sqrt(max(0.0, np.square(means[1] - means[0]).mean() - chance))
    spread = array(tree, "observed_data", "y").std()
    change = np.square(sds[1]).mean() / np.square(sds[0]).mean() - 1 if sds[0].any() else 0.0
    alive = bool(moved > 0.01 * spread) or abs(change) > 0.05
    return Verdict(
        "Does the belief respond to data?",
        "passed" if alive else "failed",
        f"{_last(tree)} data move the expected function by {moved:.3g} (root mean square; targets have a standard "
        f"deviation of {spread:.3g}) and change its variance by {100 * change:.0f} %",
        "What the belief expects of the function changes as data come in."
        if alive
        else "The belief is what it was before the data: adaptation does nothing. Raise the inner rate or the number "
        "of steps, or check that the learner's gradient reaches what is adapted.",
    )


def _known(tree: xr.DataTree) -> Verdict:
    """Error of the expected function, beside the exact one's."""
    errors = {name: np.sqrt(values.mean(1)) for name, values in value_errors(tree).items()}
    steps, truth = array(tree, "posterior", "context_step"), array(tree, "constant_data", "latent_truth")
    shown = np.unique(np.linspace(0, len(steps) - 1, 4).round().astype(int))
    found = "RMSE " + ", ".join(f"{errors['belief'][c]:.3g} after {steps[c]}" for c in shown) + " data"
    if "exact" in errors:
        found += f"; exact inference {errors['exact'][-1]:.3g} after {steps[-1]}"
    return Verdict(
        "How well does it know the function?",
        "note",
        f"{found}; knowing nothing {np.sqrt(truth.var(0).mean()):.3g}",
        "Distance of the expected function from the true one, without noise, at inputs that all tasks share.",
    )


def _width(tree: xr.DataTree) -> Verdict:
    contraction = array(tree, "fit_stats", "contraction")[-1]
    _, high = bootstrap_interval(contraction)
    wide = np.flatnonzero(high < -0.01)
    return Verdict(
        "Is the belief never wider than the prior?",
        "failed" if len(wide) else "passed",
        f"mean contraction {contraction.mean():.2f}, smallest dimension {contraction.mean(0).min():.2f}",
        f"Data made the belief wider in {', '.join(latent_names(tree)[d] for d in wide)}: exact inference does not do "
        f"that on average.{'' if is_functional(tree) else _WIDER}"
        if len(wide)
        else "On average data narrow every dimension, or leave it alone, as exact inference would.",
    )


def _adaptation(tree: xr.DataTree) -> list[Verdict]:
    returns = array(tree, "trajectory", "return")
    if returns.shape[1] == 1:
        return []
    gain = returns[:, -1] - returns[:, 0]
    low, high = bootstrap_interval(gain)
    better = bool(low > 0)
    verdict = Verdict(
        "Does the agent get better as it adapts?",
        "passed" if better else "failed",
        f"episode {returns.shape[1]} minus episode 1: {gain.mean():+.3g} [{low:.3g}, {high:.3g}]",
        "The same tasks score higher once the agent has seen data of them."
        if better
        else "The last episode is not better than the first, which was played on the prior. Either the tasks can be "
        "solved without knowing them, or the agent does not use what it learns: train longer, or look at the belief.",
    )
    return [verdict]


def _reference(tree: xr.DataTree) -> list[Verdict]:
    group = tree["trajectory"].dataset
    if "reference_oracle" not in group:
        return []
    returns, oracle = group["return"].values, group["reference_oracle"].values
    gap = (oracle - returns[:, 0]).mean()
    closed = f"{100 * (returns[:, -1] - returns[:, 0]).mean() / gap:.0f} %" if gap > 0 else "none"
    regret = oracle - returns[:, -1]
    low, high = bootstrap_interval(regret)
    bayes = [_bayes(name, group) for name in ("bayes_optimal", "thompson") if f"reference_{name}" in group]
    return [
        *bayes,
        Verdict(
            "How far is it from an agent that knows the task?",
            "note",
            f"oracle regret of the last episode {regret.mean():.3g} [{low:.3g}, {high:.3g}]; "
            f"{closed} of the first episode's gap is closed",
            "The oracle is told the task; no agent that must infer it can do better on average.",
        ),
    ]


def _bayes(name: str, group: xr.Dataset) -> Verdict:
    """Regret of the whole trial against an agent with exact inference: the Bayes-optimal one has none above it."""
    optimum, returns = group[f"reference_{name}"].values, group["return"].values
    optimum = optimum if optimum.ndim == 2 else optimum[:, None]
    regret = (optimum - returns).sum(1)
    low, high = bootstrap_interval(regret)
    found = f"regret of the whole trial {regret.mean():.3g} [{low:.3g}, {high:.3g}]"
    if name == "thompson":
        meaning = "That agent samples a task from the exact posterior and does what is best in it: what posterior "
        meaning += "sampling is worth when nothing is left to learn. One that explores better may have less than none."
        return Verdict("How far is it from posterior sampling with exact inference?", "note", found, meaning)
    leak = bool(high < 0)
    return Verdict(
        "How far is it from the Bayes-optimal agent?",
        "failed" if leak else "note",
        found,
        "No agent does better than the Bayes-optimal one on average: this one has seen what it should infer."
        if leak
        else "Bayes regret: what is lost by not exploring and using what is known in the best possible way.",
    )


def _identified(tree: xr.DataTree) -> Verdict:
    errors = squared_errors(tree, "decoded")
    _, truth = parameters(tree)
    baseline = ((truth - truth.mean(0)) ** 2).sum(1)
    low, _ = bootstrap_interval(baseline - errors[-1])
    explained = 1 - errors[-1].mean() / baseline.mean()
    knows = bool(low > 0)
    return Verdict(
        "Can the true task be read off the belief?",
        "passed" if knows else "failed",
        f"RMSE {np.sqrt(errors[-1].mean()):.3g} after {_last(tree)} data, {100 * explained:.0f} % of the variance of "
        f"the true parameters",
        "A linear or quadratic function of the posterior mean, fitted on other tasks, predicts the task's parameters."
        if knows
        else "The posterior mean says nothing of the true parameters that simple regression can find: the latent "
        "ignores them, or there are too few tasks to tell.",
    )


def _efficiency(tree: xr.DataTree) -> list[Verdict]:
    if "exact" not in tree.children:
        return []
    learned, exact = (np.sqrt(squared_errors(tree, group).mean(1)) for group in ("decoded", "exact"))
    steps = array(tree, "posterior", "context_step")
    enough = np.flatnonzero(exact <= learned[-1])
    when = (
        f"exact inference needs {steps[enough[0]]} data for as much" if len(enough) else "exact inference is no better"
    )
    return [
        Verdict(
            "How does it compare with exact inference on the same data?",
            "note",
            f"RMSE {learned[-1]:.3g} after {steps[-1]} data, exact posterior mean {exact[-1]:.2g}; {when}",
            "The exact posterior mean is the best estimate there is; the distance to it is what inference still loses.",
        )
    ]


def _last(tree: xr.DataTree) -> int:
    return int(array(tree, "posterior", "context_step")[-1])
