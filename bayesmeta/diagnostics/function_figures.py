"""The figures of beliefs about functions, each from the results alone."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesmeta.diagnostics.decoding import value_errors
from bayesmeta.diagnostics.intervals import bootstrap_interval
from bayesmeta.diagnostics.latent import latent_names
from bayesmeta.diagnostics.plotting import COLOURS, EXACT, LEARNED, MUTED, band, context_axis, log_axis, panel
from bayesmeta.diagnostics.results import array


def value_error(tree: xr.DataTree) -> Figure:
    """Error of the expected function against context size, beside exact inference's where it is known."""
    steps = array(tree, "posterior", "context_step").tolist()
    truth = array(tree, "constant_data", "latent_truth")
    figure, axes = panel()
    names = {"belief": (LEARNED, "belief"), "exact": (EXACT, "exact inference")}
    for name, errors in value_errors(tree).items():
        interval = [np.sqrt(end) for end in bootstrap_interval(errors.T)]
        band(axes, steps, np.sqrt(errors.mean(1)), interval, *names[name])
    axes.axhline(np.sqrt(truth.var(0).mean()), color=MUTED, linewidth=1, linestyle="--", label="knowing nothing")
    log_axis(axes)
    axes.set(ylabel="RMSE of the function's values", title="What is known of the function")
    context_axis(axes, steps, [])
    axes.legend(loc="lower left")
    return figure


def functions(tree: xr.DataTree, tasks: int = 4, rows: int = 3) -> Figure:
    """The belief about a few tasks' functions at the probes: median and central 90 %, a row per number of data.

    With one input and one target over the input, with the data; else the values side by side.
    """
    z, steps = array(tree, "posterior", "z")[0], array(tree, "posterior", "context_step")
    constant = tree["constant_data"].to_dataset()
    truth = constant["latent_truth"].to_numpy() if "latent_truth" in constant else None
    shown = np.unique(np.linspace(0, len(steps) - 1, min(rows, len(steps))).round().astype(int))
    tasks = min(tasks, z.shape[2])
    x = _places(tree, z.shape[-1])
    figure = Figure((2.5 * tasks + 0.5, 1.9 * len(shown) + 0.9), layout="constrained")
    grid = figure.subplots(len(shown), tasks, squeeze=False, sharex=True, sharey=True)
    for row, c in enumerate(shown):
        for b, axes in enumerate(grid[row]):
            low, middle, high = np.quantile(z[:, c, b], [0.05, 0.5, 0.95], axis=0)
            if x is not None:
                _scatter_data(axes, tree, b, int(steps[c]))
            where = np.arange(len(middle)) if x is None else x
            ends = (middle - low, high - middle)
            style = {"color": LEARNED, "markersize": 4, "linewidth": 1.3, "linestyle": ""}
            axes.errorbar(where, middle, ends, marker="o", label="belief: median, central 90 %", **style)
            if truth is not None:
                axes.plot(where, truth[b], color=COLOURS[1], marker="_", markersize=9, linestyle="", label="truth")
            if row == 0:
                axes.set_title(f"task {b}", fontsize=9.5, fontweight="normal")
        grid[row, 0].set_ylabel(f"after {steps[c]} data")
    if x is None:
        named = len(where) <= 12
        for axes in grid[-1]:
            axes.set_xticks(where if named else [], latent_names(tree) if named else [], rotation=90)
    handles, labels = grid[-1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    figure.supxlabel("value of the function" if x is None else "x", fontsize=10)
    return figure


def _places(tree: xr.DataTree, count: int) -> np.ndarray | None:
    """The probes as places on a line, if they are that and each has one value."""
    constant = tree["constant_data"].to_dataset()
    if "probes" not in constant or constant["probes"].dims != ("probe", "x_dim"):
        return None
    x = constant["probes"].to_numpy()
    return x[:, 0] if x.shape == (count, 1) and _numbers(tree) else None


def _numbers(tree: xr.DataTree) -> bool:
    """Whether a target is one number, which can be drawn beside the function's value."""
    return tree["observed_data"].sizes["y_dim"] == 1 and "x" in tree["constant_data"].data_vars


def _scatter_data(axes: Axes, tree: xr.DataTree, task: int, size: int) -> None:
    constant = tree["constant_data"].to_dataset()
    rows = (constant["task_of_obs"].to_numpy() == task) & (constant["step_of_obs"].to_numpy() < size)
    x, y = constant["x"].to_numpy()[rows, 0], array(tree, "observed_data", "y")[rows, 0]
    axes.scatter(x, y, s=10, color=MUTED, alpha=0.6, linewidths=0, label="data")
