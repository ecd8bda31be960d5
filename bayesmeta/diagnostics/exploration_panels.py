"""The panels of a report about how a world was explored."""

import numpy as np
import xarray as xr

from bayesmeta.diagnostics import exploration_figures
from bayesmeta.diagnostics.exploration import DRAWS
from bayesmeta.diagnostics.panels import Panel
from bayesmeta.diagnostics.results import array, attribute
from bayesmeta.diagnostics.tables import numbers
from bayesmeta.tasks.world import World
from bayesmeta.types import TaskFamily


def exploration(tree: xr.DataTree, family: TaskFamily | None) -> list[Panel]:
    """What exploration told and the belief kept of it, whether the belief is as sure as it should be, and paths."""
    exact = array(tree, "exploration", "exact_nats").mean(1)
    said = f"Nats of the true problem after each step, exact: {numbers(exact)}"
    believes = "nats" in tree["exploration"].data_vars
    panels = [
        Panel(
            lambda: exploration_figures.recovered(tree),
            f"{said}; belief: {numbers(array(tree, 'exploration', 'nats').mean(1))}." if believes else f"{said}.",
            "What is known of the problem after each step. The exact posterior's line is what exploration told, never "
            "more than the dashed one. "
            + (
                "The belief's should lie on it, and can lie above it only by chance; below 0 it is sure of a wrong "
                "problem."
                if believes
                else "The belief of this agent is a point, from which no probabilities can be read."
            ),
        )
    ]
    if believes:
        panels += _calibration(tree)
    if isinstance(family, World):
        paid = array(tree, "exploration", "bonus" if believes else "exact_nats")
        first = paid[1:, 0] if believes else np.diff(paid[:, 0])
        unit = f"what it was paid, in {attribute(tree, 'bonus_unit')}" if believes else "what it told, in nats"
        panels.append(
            Panel(
                lambda: exploration_figures.paths(tree, family),
                f"Explorations of a few problems, step by step. Numbers of the first task: {numbers(first)}.",
                f"Explorations of a few problems, from the framed cell on. At each cell: the number of the step that "
                f"led there, and {unit}; green where the exact posterior learned something. Look whether "
                + (
                    "the large numbers are the green ones, and whether exploration ends when there are no more."
                    if believes
                    else "the agent goes where something can be learned, and ends when there is no more."
                ),
                wide=True,
            )
        )
    return panels


def _calibration(tree: xr.DataTree) -> list[Panel]:
    kl, error = array(tree, "exploration", "kl").mean(1), array(tree, "exploration", "ece")
    chance = array(tree, "exploration", "exact_ece")
    noise = (tree["exploration"].sizes["problem_row"] - 1) / (2 * DRAWS)
    return [
        Panel(
            lambda: exploration_figures.divergence(tree),
            f"KL of the exact posterior over the problems from the belief's after each step, in nats: {numbers(kl)}.",
            f"How far what the belief says of the problems is from exact: 0 is right, or {noise:.2g} before anything "
            f"is known, the noise of {DRAWS} draws. It should be so at the latest when the problem is known; before, a "
            f"Gaussian between the codes of several problems may stand for some of them more than for others.",
        ),
        Panel(
            lambda: exploration_figures.certainty(tree),
            f"Expected calibration error of the likeliest problem after each step: {numbers(error)}; of the exact "
            f"posterior, by chance: {numbers(chance)}.",
            "How often the problem that the belief thinks likeliest is the true one. Dots below the line: "
            "over-confident; above: too cautious. Bigger dots are more tasks.",
        ),
    ]
