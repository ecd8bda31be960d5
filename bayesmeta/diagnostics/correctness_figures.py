"""The figures that show whether a belief is right."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from bayesmeta.diagnostics.calibration import quantities_of
from bayesmeta.diagnostics.decoding import decoder
from bayesmeta.diagnostics.intervals import bootstrap_interval
from bayesmeta.diagnostics.plotting import (
    COLOURS,
    EXACT,
    GRID,
    LEARNED,
    MUTED,
    REFERENCE,
    band,
    context_axis,
    ordered,
    panel,
)
from bayesmeta.diagnostics.results import array, episode_ends, parameters
from bayesmeta.diagnostics.tables import few
from bayesmeta.diagnostics.uniformity import ecdf_band

_PANELS = 8  # quantities drawn at most


def ranks(tree: xr.DataTree) -> Figure:
    """ECDF of the ranks minus the diagonal, a panel per quantity and a line per context size, with the 95 % band."""
    columns = quantities_of(tree["prior_sbc"].to_dataset())
    steps = array(tree, "prior_sbc", "context_step")
    shown = few(len(steps))
    joint = [name for name in columns if not _is_coordinate(tree, name)]
    names = [*joint, *[name for name in columns if name not in joint]][:_PANELS]
    wide = min(4, len(names))
    figure = Figure((2.5 * wide + 0.4, 2.2 * -(-len(names) // wide) + 0.7), layout="constrained")
    grid = figure.subplots(-(-len(names) // wide), wide, squeeze=False, sharex=True, sharey=True)
    for axes, name in zip(grid.flat, names, strict=False):
        values = columns[name]
        where, low, high = ecdf_band(len(values))
        axes.fill_between(where, low - where, high - where, color=GRID, linewidth=0, label="95 % band if uniform")
        for colour, c in zip(ordered(len(shown)), shown, strict=True):
            ecdf = np.searchsorted(np.sort(values[:, c]), where, side="right") / len(values)
            axes.plot(where, ecdf - where, color=colour, linewidth=1.3, label=f"{steps[c]} data")
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_title(name.replace("_", " "), fontsize=9.5)
        axes.grid(False)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(7, len(labels)))
    figure.supxlabel("rank of the truth in the belief (PIT)", fontsize=10)
    figure.supylabel("ECDF minus uniform", fontsize=10)
    return figure


def _is_coordinate(tree: xr.DataTree, name: str) -> bool:
    return name.removeprefix("z").isdigit() or name in parameters(tree)[0]


def coverage(tree: xr.DataTree) -> Figure:
    """How often the highest-density region of each level holds the truth, a line per context size."""
    values = tree["prior_sbc"].to_dataset()["log_q"].to_numpy()[0]
    steps = array(tree, "prior_sbc", "context_step")
    shown = few(len(steps))
    figure, axes = panel()
    where, low, high = ecdf_band(len(values))
    axes.fill_between(where, low, high, color=GRID, linewidth=0, label="95 % band if exact")
    for colour, c in zip(ordered(len(shown)), shown, strict=True):
        covered = np.searchsorted(np.sort(1 - values[:, c]), where, side="right") / len(values)
        axes.plot(where, covered, color=colour, linewidth=1.4, label=f"{steps[c]} data")
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9)
    axes.set(xlabel="level of the region", ylabel="share of tasks whose truth is in it", title="Expected coverage")
    axes.legend(loc="upper left")
    return figure


def distance(tree: xr.DataTree) -> Figure:
    """Distance from the reference against context size: KL, or sliced Wasserstein where there are only draws."""
    steps = array(tree, "posterior", "context_step").tolist()
    kl = array(tree, "distance", "kl_reference")
    known = bool(np.isfinite(kl).all())
    values = kl if known else array(tree, "distance", "sliced_wasserstein")
    figure, axes = panel()
    band(axes, steps, values.mean(1), bootstrap_interval(values.T), LEARNED, "mean over tasks, 95 % interval")
    axes.axhline(0, color=MUTED, linewidth=0.9)
    unit = "KL(reference, belief), nats" if known else "sliced Wasserstein distance, posterior sd"
    axes.set(ylabel=unit, title="Distance from the reference posterior")
    axes.set_ylim(top=max(0.02, axes.get_ylim()[1]))
    context_axis(axes, steps, episode_ends(tree))
    axes.legend(loc="best")
    return figure


def z_scores(tree: xr.DataTree) -> Figure:
    """Mean and root mean square of the z-scores against context size: 0 and 1 for the exact posterior."""
    steps = array(tree, "posterior", "context_step").tolist()
    scores = array(tree, "fit_stats", "z_score").transpose(1, 0, 2)
    figure, axes = panel()
    band(axes, steps, scores.mean((0, 2)), bootstrap_interval(scores.mean(2)), LEARNED, "mean: bias")
    square = (scores**2).mean(2)
    interval = [np.sqrt(end) for end in bootstrap_interval(square)]
    band(axes, steps, np.sqrt(square.mean(0)), interval, EXACT, "root mean square: above 1 is over-confident")
    for level in (0, 1):
        axes.axhline(level, color=MUTED, linewidth=0.9, linestyle="--")
    axes.set(ylabel="(posterior mean - truth) / posterior sd", title="Errors in units of the belief's own width")
    context_axis(axes, steps, episode_ends(tree))
    axes.legend(loc="best")
    return figure


def predictions(tree: xr.DataTree) -> Figure:
    """Histogram of the PIT values of unseen data: flat where predictions are calibrated."""
    values = array(tree, "predictive", "pit").ravel()
    figure, axes = panel()
    bins = 20
    axes.hist(values, bins=bins, range=(0, 1), density=True, color=LEARNED, alpha=0.75)
    axes.axhline(1, color=MUTED, linewidth=0.9)
    axes.set(xlabel="PIT of unseen data", ylabel="density", title="Are predictions of unseen data calibrated?")
    axes.grid(False, axis="x")
    return figure


def reliability(tree: xr.DataTree) -> Figure:
    """How often what the predictive claims of classes comes true; the area of a dot is its number of data."""
    group = tree["predictive"].to_dataset()
    confidence, accuracy, count = (group[name].to_numpy() for name in ("confidence", "accuracy", "count"))
    figure, axes = panel()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, label="calibrated")
    seen = count > 0
    axes.plot(confidence[seen], accuracy[seen], color=LEARNED, linewidth=1.3)
    axes.scatter(confidence[seen], accuracy[seen], s=10 + 200 * count[seen] / count.max(), color=LEARNED, alpha=0.75)
    axes.set(xlabel="predicted probability", ylabel="share that came true", title="Reliability of predicted classes")
    axes.legend(loc="upper left")
    return figure


def information(tree: xr.DataTree) -> Figure:
    """Nats that the belief tells of which task it is about, and the ceiling, the logarithm of their number."""
    steps = array(tree, "posterior", "context_step").tolist()
    values = array(tree, "fit_stats", "information")
    figure, axes = panel()
    band(axes, steps, values.mean(1), bootstrap_interval(values.T), LEARNED, "belief")
    tasks = values.shape[1]
    axes.axhline(np.log(tasks), color=REFERENCE, linestyle="--", label=f"log {tasks}: all there is to know")
    axes.axhline(0, color=MUTED, linewidth=0.9)
    axes.set(ylabel="information (nats)", title="Which task is it?")
    context_axis(axes, steps, episode_ends(tree))
    axes.legend(loc="best")
    return figure


def belief_over_time(tree: xr.DataTree, tasks: int = 4) -> Figure:
    """The belief about a few tasks' parameters as data come in: median and central 80 % and the truth.

    Decoded from the latent where that has no truth of its own, else the latent itself.
    """
    steps = array(tree, "posterior", "context_step").tolist()
    names, truth = parameters(tree)
    z = array(tree, "posterior", "z")[0]  # [L, C, B, D]
    if "decoded" in tree.children:
        decode = decoder(tree)
        z = decode(z[:, :, :tasks].reshape(-1, z.shape[-1]).astype(float)).reshape(*z.shape[:2], -1, truth.shape[1])
    rows = min(2, len(names))
    shown = min(tasks, z.shape[2])
    figure = Figure((2.4 * shown + 0.5, 2.1 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, shown, squeeze=False, sharex=True, sharey="row")
    for m in range(rows):
        for b, axes in enumerate(grid[m]):
            low, middle, high = np.quantile(z[:, :, b, m], [0.1, 0.5, 0.9], axis=0)
            band(axes, steps, middle, (low, high), LEARNED, "belief: median, central 80 %")
            axes.axhline(truth[b, m], color=COLOURS[1], linewidth=1.3, label="truth")
            context_axis(axes, steps, episode_ends(tree))
            axes.set_xlabel("data seen" if m == rows - 1 else "")
            if m == 0:
                axes.set_title(f"task {b}", fontsize=9.5, fontweight="normal")
        grid[m, 0].set_ylabel(names[m])
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure
