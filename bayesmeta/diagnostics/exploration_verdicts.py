"""Verdicts on an agent that explores a world before it is paid: what it found out, believed, and made of it."""

import numpy as np
import xarray as xr
from jaxtyping import Float

from bayesmeta.diagnostics.intervals import bootstrap_interval
from bayesmeta.diagnostics.results import array
from bayesmeta.diagnostics.tables import few, references
from bayesmeta.diagnostics.words import Verdict

_TOLD = 0.01  # nats, as of a belief that responds to data


def exploration(tree: xr.DataTree) -> list[Verdict]:
    """Every verdict on exploration, and on the returns of those who have explored."""
    found = [_told(tree)]
    if "nats" in tree["exploration"].data_vars:
        found.append(_held(tree))
    return [*found, *_paid(tree), *_unseen(tree)]


def _told(tree: xr.DataTree) -> Verdict:
    group = tree["exploration"].to_dataset()
    nats, problems = group["exact_nats"].to_numpy()[-1], group.sizes["problem_row"]
    steps = group["real"].to_numpy()[1:].sum(0).mean()
    low, high = bootstrap_interval(nats)
    good = bool(low > _TOLD)
    return Verdict(
        "Does exploration find out which problem it is?",
        "passed" if good else "failed",
        f"{nats.mean():.2f} nats [{low:.2f}, {high:.2f}] of log {problems} = {np.log(problems):.2f}, by the exact "
        f"posterior, in {steps:.1f} steps",
        "What was seen tells problems apart; an exact posterior would know so much of them."
        if good
        else "Nothing that was seen tells one problem from another, so that no belief can. If exploration ends at "
        "once, a step costs more than it is worth: lower the cost, or train the belief for longer before the explorer.",
    )


def _held(tree: xr.DataTree) -> Verdict:
    """By Gibbs' inequality no belief gives the true problem more, on average, than the exact posterior."""
    held, exact = array(tree, "exploration", "nats")[-1], array(tree, "exploration", "exact_nats")[-1]
    kl, error = array(tree, "exploration", "kl").mean(1), array(tree, "exploration", "ece")
    leak = bool(bootstrap_interval(held - exact)[0] > 0)
    shown = few(len(kl), 3)
    return Verdict(
        "Does the belief know what its exploration told?",
        "failed" if leak else "note",
        f"it holds {held.mean():.2f} nats of the problem, the exact posterior {exact.mean():.2f}; after "
        f"{', '.join(map(str, shown))} steps KL from the exact one {', '.join(f'{kl[c]:.3g}' for c in shown)} nats, "
        f"calibration error {', '.join(f'{error[c]:.2f}' for c in shown)}",
        "No belief holds more of the problem on average than the exact posterior: this one has seen what it should "
        "infer."
        if leak
        else "Draws of the belief are counted for the problems whose codes they are. Before the problem is known a "
        "single Gaussian lies between the codes and cannot say of which it is, so that its odds are wrong then; what "
        "counts is that it is right once the exact posterior is.",
    )


def _paid(tree: xr.DataTree) -> list[Verdict]:
    group = tree["trajectory"].to_dataset()
    last, others = group["return"].to_numpy()[:, -1], references(group)
    found = []
    if "walking" in others:
        gain = last - others["walking"]
        low, high = bootstrap_interval(gain)
        better = bool(low > 0)
        found.append(
            Verdict(
                "Is what it found out worth anything?",
                "passed" if better else "failed",
                f"return {last.mean():.3g}, {gain.mean():+.3g} [{low:.3g}, {high:.3g}] against the best without "
                f"knowing the problem",
                "It is paid more than anyone could be who does not know the problem."
                if better
                else "One who never explores gets as much. Either exploration finds out nothing, or execution does not "
                "use it: train longer, or look at the belief.",
            )
        )
    low, high = bootstrap_interval(others["oracle"] - last)
    sampling = f"{others['thompson_redrawn'].mean():.3g} drawing anew when contradicted"
    sampling += f", {others['thompson_kept'].mean():.3g} with one draw an episode"
    return [
        *found,
        Verdict(
            "How far is it from an agent that knows the problem?",
            "note",
            f"return {last.mean():.3g}, oracle regret {(others['oracle'] - last).mean():.3g} [{low:.3g}, {high:.3g}]; "
            f"exact posterior sampling gets {sampling}",
            "The oracle is told the problem and plans; no agent that must find it out can do better on average. One "
            "that explores by posterior draws never looks for information for its own sake.",
        ),
    ]


def _unseen(tree: xr.DataTree) -> list[Verdict]:
    if "unseen" not in tree.children:
        return []
    group = tree["unseen"].to_dataset()
    last, nats = group["return"].to_numpy()[:, -1], group["exact_nats"].to_numpy()
    regret = group["reference_oracle"].to_numpy() - last
    return [
        Verdict(
            "How does it do in problems that it was not trained on?",
            "note",
            f"return {_with_interval(last)}, oracle regret {_with_interval(regret)}; exploration tells "
            f"{nats.mean():.2f} nats of which problem it is",
            "Everything else here is of problems that it was trained on: the code of another means nothing.",
        )
    ]


def _with_interval(values: Float[np.ndarray, "B"]) -> str:
    low, high = bootstrap_interval(values)
    return f"{values.mean():.3g} [{low:.3g}, {high:.3g}]"
