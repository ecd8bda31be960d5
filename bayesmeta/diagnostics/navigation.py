"""Paths of an agent in the plane, over what exact inference believed of its goal when the episode began."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesmeta.diagnostics.plotting import COLOURS, INK, MUTED
from bayesmeta.diagnostics.results import parameters
from bayesmeta.inference.beliefs import Weighted
from bayesmeta.types import Context, Inference

_BLOCK = 5  # cells of the goal grid drawn as one, so that a belief of a single cell can be seen


def is_plane(tree: xr.DataTree) -> bool:
    """Whether the trial is navigation in the plane: the observation is the position and the task a goal."""
    if "trajectory" not in tree.children or "obs" not in tree["trajectory"].data_vars:
        return False
    return tree["trajectory"].sizes["obs_dim"] == 2 and parameters(tree)[0] == ("goal_x", "goal_y")


def paths(tree: xr.DataTree, exact: Inference | None, tasks: int = 4, columns: int = 4) -> Figure:
    """One row per task, one column per episode: the path from its start, the goal, and the exact belief before it."""
    group, (_, goals) = tree["trajectory"].dataset, parameters(tree)
    episode_of_t, returns = group["episode_of_t"].values, group["return"].values
    count = returns.shape[1]
    shown = list(range(1, count + 1)) if count <= columns else [*range(1, columns), count]
    tasks = min(tasks, len(goals))
    beliefs = _beliefs(exact, _context(group, tasks), [int((episode_of_t < k).sum()) for k in shown]) if exact else []
    figure = Figure((2.35 * len(shown) + 0.4, 2.35 * tasks + 0.6), layout="constrained")
    grid = figure.subplots(tasks, len(shown), squeeze=False, sharex=True, sharey=True)
    for column, k in enumerate(shown):
        during = episode_of_t == k
        for b in range(tasks):
            axes = grid[b, column]
            if beliefs:
                _draw_belief(axes, beliefs[column], b)
            real = during & group["real"].values[b]
            states = np.concatenate([group["obs"].values[b, real], group["next_obs"].values[b, real][-1:]])
            _draw_path(axes, states, goals[b])
            axes.set_title(f"episode {k}: return {returns[b, k - 1]:.1f}", fontsize=9, fontweight="normal")
    for b in range(tasks):
        grid[b, 0].set_ylabel(f"task {b}\ny")
    for axes in grid[-1]:
        axes.set_xlabel("x")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _draw_path(axes: Axes, states: np.ndarray, goal: np.ndarray) -> None:
    axes.plot(*states.T, color=COLOURS[0], linewidth=1.5, marker="o", markersize=2, label="path")
    axes.plot(*states[0], color="white", markeredgecolor=INK, marker="o", markersize=6, linestyle="", label="start")
    axes.plot(*goal, color=COLOURS[1], markeredgecolor="white", marker="*", markersize=13, linestyle="", label="goal")
    axes.set(aspect="equal", xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    axes.grid(False)


def _draw_belief(axes: Axes, belief: Weighted, task: int) -> None:
    points, mass = belief.points[task].numpy(), belief.log_weights[task].exp().numpy()
    if not (belief.cell > 0).all():
        shade = colormaps["Greys"](0.15 + 0.85 * mass / mass.max())
        axes.scatter(*points.T, c=shade, s=18, linewidths=0, label="exact belief before the episode")
        return
    side = round(len(points) ** 0.5)
    blocks = side // _BLOCK
    image = mass.reshape(blocks, _BLOCK, blocks, _BLOCK).sum((1, 3)).T  # the first coordinate runs along x
    low, high = points.min(0) - belief.cell.numpy() / 2, points.max(0) + belief.cell.numpy() / 2
    box = (low[0], high[0], low[1], high[1])
    # The root of the mass: thin rings and single cells are both visible.
    axes.imshow(np.sqrt(image / image.max()), extent=box, origin="lower", cmap="Greys", vmin=0, vmax=1.35)
    axes.plot([], [], color=MUTED, marker="s", linestyle="", markersize=7, label="exact belief before the episode")


def _context(group: xr.Dataset, tasks: int) -> Context:
    """The data of the first tasks, as inference sees them."""
    obs, action, reward, real = (torch.as_tensor(group[n].values[:tasks]) for n in ("obs", "action", "reward", "real"))
    return Context(torch.cat([obs, action], -1), reward.unsqueeze(-1), real.bool())


@torch.no_grad()
def _beliefs(exact: Inference, context: Context, sizes: Sequence[int]) -> list[Weighted]:
    belief, seen, found = exact.init(context.batch), 0, []
    for size in sizes:
        belief, seen = exact.update(belief, context.rows(seen, size)) if size > seen else belief, size
        found.append(belief)
    return found
