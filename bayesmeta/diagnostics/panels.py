"""Which figures of a report are drawn for which results, with the words for readers who cannot see them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from bayesmeta.diagnostics import correctness_figures, figures, function_figures, navigation
from bayesmeta.diagnostics.decoding import squared_errors, value_errors
from bayesmeta.diagnostics.information import active_dimensions
from bayesmeta.diagnostics.latent import is_functional
from bayesmeta.diagnostics.results import array, attribute, parameters
from bayesmeta.diagnostics.tables import numbers
from bayesmeta.diagnostics.truth import exact_posterior
from bayesmeta.folder import RunFolder
from bayesmeta.types import TaskFamily


@dataclass(frozen=True)
class Panel:
    """A figure, what a reader is told who cannot see it, and its caption. ``wide`` ones have a row of their own."""

    draw: Callable[[], Figure]
    alternative: str
    caption: str
    wide: bool = False


def behaviour(tree: xr.DataTree, family: TaskFamily | None, run: RunFolder | None) -> list[Panel]:
    """Returns of an agent, its learning curve, and its paths in the plane."""
    panels = [
        Panel(
            lambda: figures.adaptation(tree),
            f"Mean return by adaptation episode: {numbers(array(tree, 'trajectory', 'return').mean(0))}.",
            "Return of each adaptation episode: mean over tasks with its 95 % interval, every task as a dot, and what "
            "reference agents get.",
        )
    ]
    panels += learning(tree, run)
    if navigation.is_plane(tree):
        exact = exact_posterior(family) if family else None
        panels.append(
            Panel(
                lambda: navigation.paths(tree, exact),
                "Paths of the agent in four tasks, a row of panels per episode, with start, goal and beliefs.",
                "Paths in four tasks, one row an episode. Blue dots: goals that the agent thinks possible when the "
                "episode begins, decoded from draws of its belief; the ring is the one it acts on. Grey: what exact "
                "inference believes given the same data, the darker the surer.",
                wide=True,
            )
        )
    return panels


def learning(tree: xr.DataTree, run: RunFolder | None) -> list[Panel]:
    """The learning curve of a run that was evaluated more than once."""
    records = _json_lines(run.evaluation / "returns.jsonl") if run else []
    if not run or len(records) < 2:
        return []
    last = numbers(records[-1]["returns"])
    if "trajectory" in tree.children:
        steps = {line["iteration"]: line["env_steps"] for line in _json_lines(run.metrics) if "env_steps" in line}
        return [
            Panel(
                lambda: figures.learning(records, steps),
                f"Test return by adaptation episode at the last evaluation: {last}.",
                "Test return of each adaptation episode in the course of training, mean and 95 % interval over tasks.",
            )
        ]
    shots = attribute(tree, "config", {}).get("eval", {}).get("shots", [])
    known = len(shots) == len(records[-1]["returns"])
    labels = [f"{s} data" for s in shots] if known else [f"stage {k + 1}" for k in range(len(records[-1]["returns"]))]
    return [
        Panel(
            lambda: figures.learning(records, {}, labels, "log density of unseen data (nats)"),
            f"Log predictive density of unseen data after {', '.join(labels)} at the last evaluation, in nats: {last}.",
            "Log predictive density of unseen data, after so many data of the same task, in the course of training: "
            "mean and 95 % interval over tasks, in nats per datum. Higher is better.",
        )
    ]


def correctness(tree: xr.DataTree) -> list[Panel]:
    """Ranks, coverage, z-scores, distance from the reference and predictions, as far as they are known."""
    panels = []
    if "prior_sbc" in tree.children:
        p = array(tree, "calibration", "p_value")
        panels.append(
            Panel(
                lambda: correctness_figures.ranks(tree),
                f"Ranks of the truth in the belief; smallest p-value per quantity: {numbers(np.nanmin(p, 0))}.",
                "Where truths fall among draws of the belief. Exact inference gives lines inside the grey band; above "
                "it truths are too low in the belief, and an S shape is a wrong width. The log likelihood sees what "
                "the coordinates cannot: data that were ignored.",
                wide=True,
            )
        )
        if "log_q" in tree["prior_sbc"].data_vars:
            panels.append(
                Panel(
                    lambda: correctness_figures.coverage(tree),
                    f"Coverage of the 50, 80, 95 % regions after all data: "
                    f"{numbers(array(tree, 'calibration', 'coverage')[-1])}.",
                    "Below the diagonal the belief is over-confident, above it too wide.",
                )
            )
    if "z_score" in tree["fit_stats"].data_vars:
        square = np.sqrt((array(tree, "fit_stats", "z_score") ** 2).mean((1, 2)))
        panels.append(
            Panel(
                lambda: correctness_figures.z_scores(tree),
                f"Root mean square z-score by context size: {numbers(square)}.",
                "Errors of the posterior mean in units of the posterior's standard deviation.",
            )
        )
    if "distance" in tree.children:
        kl = array(tree, "distance", "kl_reference").mean(1)
        sliced = array(tree, "distance", "sliced_wasserstein").mean(1)
        panels.append(
            Panel(
                lambda: correctness_figures.distance(tree),
                f"KL of the reference from the belief by context size, in nats: {numbers(kl)}."
                if np.isfinite(kl).all()
                else f"Sliced Wasserstein distance from the reference by context size, in its standard deviations: "
                f"{numbers(sliced)}.",
                "How far the belief is from the exact posterior given the same data.",
            )
        )
    if "predictive" in tree.children:
        panels.append(
            Panel(
                lambda: correctness_figures.predictions(tree),
                f"Scores of unseen data: {numbers(array(tree, 'predictive', 'value'))}.",
                "Where new data of a task fall in what the belief predicts of them. A hump is a prediction too wide, a "
                "bowl one too narrow, a slope a bias.",
            )
        )
        if "confidence" in tree["predictive"].data_vars:
            accuracy = array(tree, "predictive", "accuracy")
            panels.append(
                Panel(
                    lambda: correctness_figures.reliability(tree),
                    f"Share of predictions that came true, by predicted probability: {numbers(accuracy)}.",
                    "How often what is predicted with a probability comes true.",
                )
            )
    return panels


def knowledge(tree: xr.DataTree) -> list[Panel]:
    """What is known after how many data."""
    panels, explored = [], "exploration" in tree.children
    if "decoded" in tree.children:
        error = np.sqrt(squared_errors(tree, "decoded").mean(1))
        limit = " The exact posterior on the same data is the limit." if "exact" in tree.children else ""
        panels.append(
            Panel(
                lambda: figures.learned_and_exact(tree),
                f"Error of the decoded task parameters by context size: {numbers(error)}.",
                f"Error of the true task parameters as decoded from the belief on held-out tasks.{limit}",
            )
        )
    if "information" in tree["fit_stats"].data_vars:
        values = array(tree, "fit_stats", "information").mean(1)
        panels.append(
            Panel(
                lambda: correctness_figures.information(tree),
                f"Nats that the belief tells of which task it is about, by context size: {numbers(values)}.",
                "How well draws of the belief tell the tasks apart; no more than the logarithm of their number is "
                "possible. It counts what the belief claims: an over-confident one gets there too early.",
            )
        )
    if errors := value_errors(tree):
        panels.append(
            Panel(
                lambda: function_figures.value_error(tree),
                f"Error of the function's values by context size: {numbers(np.sqrt(errors['belief'].mean(1)))}.",
                "Distance of the expected function from the true one, at inputs that all tasks share.",
            )
        )
    if parameters(tree)[0] and ("decoded" in tree.children or not (is_functional(tree) or explored)):
        panels.append(
            Panel(
                lambda: correctness_figures.belief_over_time(tree),
                "The belief about four tasks as data come in, with the true values.",
                "The belief about four tasks as data come in. It should close in on the truth, and hold it in its "
                "shaded part in four of five cases.",
                wide=True,
            )
        )
    contraction = array(tree, "fit_stats", "contraction")[-1].mean(0)
    if not np.isnan(contraction).any():  # as that of a point is
        panels.append(
            Panel(
                lambda: figures.per_dimension(
                    tree, "contraction", "Posterior contraction", "1 - posterior / prior variance"
                ),
                f"Mean contraction per latent dimension after all data: {numbers(contraction)}.",
                "Contraction of each latent dimension: 1 means known, 0 untouched, below 0 wider than the prior.",
            )
        )
    kl = array(tree, "fit_stats", "kl")[-1]
    if np.isnan(kl).any():
        return panels
    return [
        *panels,
        Panel(
            lambda: figures.per_dimension(tree, "kl", "Information gained", "KL from the prior (nats)"),
            f"KL from the prior per latent dimension after all data, in nats: {numbers(kl.mean(0))}.",
            "Information about the latent, per dimension and in all, in nats.",
        ),
        Panel(
            lambda: figures.active(tree),
            f"{int(active_dimensions(kl).sum())} of {kl.shape[1]} latent dimensions are active.",
            "Which dimensions data move, after all data of the trial.",
        ),
    ]


def latent(tree: xr.DataTree) -> list[Panel]:
    """The belief about the latent, and where the tasks lie in it."""
    panels = [
        Panel(
            lambda: function_figures.functions(tree),
            "The belief about the functions of four tasks at the probes, for several numbers of data.",
            "The belief about the functions of four tasks, as data come in. Nine of ten truths should lie in the bars; "
            "a belief without bars is a point.",
            wide=True,
        )
        if is_functional(tree)
        else Panel(
            lambda: figures.prior_and_posterior(tree),
            "Densities of the prior and of four tasks' posteriors, one panel per latent dimension.",
            "Beliefs about four tasks after all data (colours), and the prior (grey). Dimensions by information.",
            wide=tree["posterior"].sizes["latent_dim"] > 2,
        )
    ]
    names, _ = parameters(tree)
    if names and ("decoded" in tree.children or not is_functional(tree)):
        panels.append(
            Panel(
                lambda: figures.latent_map(tree),
                f"Posterior means of all tasks at several context sizes, coloured by {', '.join(names[:2])}.",
                "Where the posterior means of all tasks lie, one dot a task, coloured by its true parameters: "
                + (
                    "dots of one colour should come together and those of different ones part."
                    if "exploration" in tree.children
                    else "an ordered picture says that the latent has found them."
                ),
                wide=True,
            )
        )
    return panels


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
