"""The figures of how a world was explored: what it told, what the belief made of it, and where it was found."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from bayesmeta.diagnostics.intervals import bootstrap_interval
from bayesmeta.diagnostics.plotting import EXACT, INK, LEARNED, MUTED, REFERENCE, band, ordered, panel
from bayesmeta.diagnostics.results import array
from bayesmeta.diagnostics.tables import few
from bayesmeta.tasks.pictures import image
from bayesmeta.tasks.world import World

_TOLD = 1e-3  # nats of the exact posterior that are more than rounding
_LINES = 3  # of numbers in a cell
_PALE = 0.45


def recovered(tree: xr.DataTree) -> Figure:
    """Nats of the problem after each step: what the exact posterior knows of it, and what the belief says."""
    group = tree["exploration"].to_dataset()
    steps = group["context_step"].to_numpy()
    figure, axes = panel()
    for name, colour, label in (("exact_nats", EXACT, "exact posterior"), ("nats", LEARNED, "belief")):
        if name in group:
            values = group[name].to_numpy()
            band(axes, steps, values.mean(1), bootstrap_interval(values.T), colour, label)
    problems = group.sizes["problem_row"]
    axes.axhline(np.log(problems), color=REFERENCE, linestyle="--", label=f"log {problems}: all there is to know")
    axes.axhline(0, color=MUTED, linewidth=0.9)
    axes.set(ylabel="nats of the true problem", title="What exploration recovers")
    _step_axis(axes)
    axes.legend(loc="best")
    return figure


def divergence(tree: xr.DataTree) -> Figure:
    """KL of the exact posterior over the problems from the belief's after each step."""
    steps, kl = array(tree, "exploration", "context_step"), array(tree, "exploration", "kl")
    figure, axes = panel()
    band(axes, steps, kl.mean(1), bootstrap_interval(kl.T), LEARNED, "mean over tasks, 95 % interval")
    axes.axhline(0, color=MUTED, linewidth=0.9)
    axes.set(ylabel="KL(exact, belief), nats", title="Distance of the belief's problems from the exact ones")
    axes.set_ylim(top=max(0.1, axes.get_ylim()[1]))
    _step_axis(axes)
    axes.legend(loc="best")
    return figure


def certainty(tree: xr.DataTree, lines: int = 5) -> Figure:
    """How often the problem that the belief thinks most probable is the true one, by that probability; some steps."""
    group = tree["exploration"].to_dataset()
    steps = group["context_step"].to_numpy()
    shown = few(len(steps), lines)
    most = group["count"].to_numpy().max()
    figure, axes = panel()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, label="calibrated")
    for colour, c in zip(ordered(len(shown)), shown, strict=True):
        confidence, accuracy, count = (group[name].to_numpy()[c] for name in ("confidence", "accuracy", "count"))
        seen = count > 0
        axes.plot(confidence[seen], accuracy[seen], color=colour, linewidth=1, alpha=0.6)
        label = f"after {steps[c]} steps"
        axes.scatter(confidence[seen], accuracy[seen], s=12 + 120 * count[seen] / most, color=colour, label=label)
    axes.set(xlabel="probability of the likeliest problem", ylabel="share in which it is the true one")
    axes.set(title="Is the belief as sure as it should be?", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.legend(loc="upper left")
    return figure


def paths(tree: xr.DataTree, family: World, tasks: int = 3) -> Figure:
    """Explorations of a few different problems, each step's number at the cell that it led to.

    The number is what the step was paid, where the agent is paid for what it finds out, else what the exact posterior
    learned by it. A world without cells to be in shows its steps below.
    """
    group = tree["exploration"].to_dataset()
    problem, real = group["problem"].to_numpy(), group["real"].to_numpy()
    chosen = np.sort(np.unique(problem, return_index=True)[1])[:tasks]
    gains = np.diff(group["exact_nats"].to_numpy(), axis=0, prepend=0.0)
    numbers = group["bonus"].to_numpy() if "bonus" in group else gains
    params = family.identifiers(str(tree.attrs["split"])).long().tolist()
    pictures = [
        [_picture(family, state, params[problem[b]]) for state in group["state"].to_numpy()[real[:, b], b].tolist()]
        for b in chosen
    ]
    rows, columns = pictures[0][0].shape
    height = max(3.1 * rows / columns, 0.8) + (0.17 * int(real.sum(0).max()) if _positions(pictures[0]) is None else 0)
    figure = Figure((3.3 * len(chosen) + 0.2, height + 0.5), layout="constrained")
    for axes, b, cells in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, pictures, strict=True):
        _draw_cells(axes, _empty(cells))
        taken = real[:, b]
        words = _words(numbers[taken, b])
        told = gains[taken, b] > _TOLD
        where = _positions(cells)
        if where is None:
            actions = group["action"].to_numpy()[taken, b][1:]
            axes.set_xlabel("\n".join(f"{n}. {family.action_names[a]}: {words[n]}" for n, a in enumerate(actions, 1)))
        else:
            _draw_path(axes, where, words, told)
        nats = group["exact_nats"].to_numpy()[-1, b]
        axes.set_title(f"task {b}: {nats:.2f} nats in {taken.sum() - 1} steps", fontsize=9, fontweight="normal")
    return figure


def _picture(family: World, state: Sequence[int], params: Sequence[int]) -> np.ndarray:
    """The cells of a world, without an instruction."""
    cells, _ = family.picture(tuple(state), (0,) * family.instruction_dim, tuple(params))
    return cells


def _positions(cells: Sequence[np.ndarray]) -> Int[np.ndarray, "n 2"] | None:
    """Row and column of the agent in each picture, None if it is nowhere."""
    found = [np.argwhere(picture == "@") for picture in cells]
    return np.concatenate(found) if all(len(places) == 1 for places in found) else None


def _empty(cells: Sequence[np.ndarray]) -> np.ndarray:
    """The cells without the agent: what is under it is seen in a picture in which it is elsewhere."""
    found = cells[0].copy()
    for picture in cells:
        found = np.where(found == "@", picture, found)
    return np.where(found == "@", ".", found)


def _words(numbers: Float[np.ndarray, "n"]) -> list[str]:
    return [f"{value:+.2f}" if abs(value) < 10 else f"{value:+.0f}" for value in numbers]


def _draw_cells(axes: Axes, cells: np.ndarray) -> None:
    """Pale colours of the cells, their characters in a corner."""
    rows, columns = cells.shape
    pale = 255 - _PALE * (255 - image(cells).astype(float))
    axes.imshow(pale.astype(np.uint8), extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))
    for row, column in np.argwhere(cells != "."):
        axes.text(column - 0.42, row - 0.4, cells[row, column], fontsize=6, color=INK, va="top", ha="left")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_path(
    axes: Axes, where: Int[np.ndarray, "n 2"], words: Sequence[str], told: Sequence[bool] | np.ndarray
) -> None:
    """Arrows from cell to cell and, at each cell, the numbers of the steps that led there."""
    (y, x), moved = where.T, np.diff(where, axis=0).T
    axes.quiver(
        x[:-1], y[:-1], moved[1], moved[0], angles="xy", scale_units="xy", scale=1, width=0.008, color=INK, alpha=0.35
    )
    axes.add_patch(Rectangle((x[0] - 0.46, y[0] - 0.46), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=1.6))
    steps = sorted(range(1, len(where)), key=lambda n: (*where[n], n))
    size = 4.2 + 14.0 / axes.get_xlim()[1]
    for (row, column), there in groupby(steps, key=lambda n: tuple(where[n])):
        numbered = list(there)
        important = [n for n in numbered if told[n]]
        shown = sorted((important + [n for n in numbered if not told[n]])[:_LINES])
        lines = [(f"{n}: {words[n]}", bool(told[n])) for n in shown]
        lines += [("...", False)] if len(shown) < len(numbered) else []
        for k, (line, green) in enumerate(lines):
            axes.annotate(
                line,
                (column, row),
                (0, 1.3 * size * ((len(lines) - 1) / 2 - k)),
                textcoords="offset points",
                fontsize=size,
                ha="center",
                va="center",
                color=REFERENCE if green else INK,
                fontweight="bold" if green else "normal",
                bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "linewidth": 0, "alpha": 0.85},
            )


def _step_axis(axes: Axes) -> None:
    axes.set_xlabel("steps of exploration")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
