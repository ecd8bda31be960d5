"""Paths of an agent in the plane, over what exact inference believed of its goal when the episode began."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesmeta.diagnostics.decoding import decoder
from bayesmeta.diagnostics.plotting import COLOURS, INK, LEARNED
from bayesmeta.diagnostics.results import array, episode_ends, parameters
from bayesmeta.inference.beliefs import Weighted
from bayesmeta.types import Context, Inference

GOAL = COLOURS[1]
_BLOCK = 5  # cells of the goal grid drawn as one, so that a belief of a single cell can be seen


def is_plane(tree: xr.DataTree) -> bool:
    """Whether the trial is navigation in the plane: the observation is the position and the task a goal.

    The beliefs at the starts of its episodes must be among those recorded.
    """
    if "trajectory" not in tree.children or "obs" not in tree["trajectory"].data_vars:
        return False
    recorded = {0, *episode_ends(tree)} <= set(array(tree, "posterior", "context_step").tolist())
    return recorded and tree["trajectory"].sizes["obs_dim"] == 2 and parameters(tree)[0] == ("goal_x", "goal_y")


def paths(tree: xr.DataTree, exact: Inference | None, tasks: int = 4, rows: int = 4) -> Figure:
    """One column per task, one row per episode: the path from its start, the goal, and the beliefs before it.

    The learned belief is shown as goals decoded from its draws, the exact one as shades.
    """
    group, (_, goals) = tree["trajectory"].dataset, parameters(tree)
    episode_of_t, returns = group["episode_of_t"].values, group["return"].values
    count, tasks = returns.shape[1], min(tasks, len(goals))
    shown = list(range(1, count + 1)) if count <= rows else [*range(1, rows), count]
    starts = [[0, *episode_ends(tree)][k - 1] for k in shown]
    beliefs = _beliefs(exact, _context(group, tasks), starts) if exact else []
    drawn, acted = _imagined(tree, starts, shown)
    figure = Figure((2.35 * tasks + 0.4, 2.35 * len(shown) + 1.1), layout="constrained")
    grid = figure.subplots(len(shown), tasks, squeeze=False, sharex=True, sharey=True)
    for row, k in enumerate(shown):
        for b, axes in enumerate(grid[row]):
            if beliefs:
                _draw_belief(axes, beliefs[row], b)
            _draw_imagined(axes, drawn[row, b], acted[row, b])
            real = (episode_of_t == k) & group["real"].values[b]
            states = np.concatenate([group["obs"].values[b, real], group["next_obs"].values[b, real][-1:]])
            _draw_path(axes, states, goals[b])
            axes.set_title(f"task {b}, return {returns[b, k - 1]:.3g}", fontsize=9, fontweight="normal")
    for k, axes in zip(shown, grid[:, 0], strict=True):
        axes.set_ylabel(f"episode {k}\ny")
    for axes in grid[-1]:
        axes.set_xlabel("x")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def _imagined(
    tree: xr.DataTree, starts: Sequence[int], shown: Sequence[int], draws: int = 60
) -> tuple[np.ndarray, np.ndarray]:
    """Goals decoded from draws of the belief before each episode, and from the latent that it acted on.

    ``[episodes, B, draws, 2]`` and ``[episodes, B, 1, 2]``, the latter empty where the policy does not read a latent.
    """
    decode = decoder(tree)
    before = tree["posterior"].dataset["z"].sel(context_step=list(starts)).isel(chain=0, draw=slice(draws))
    z = before.transpose("context_step", "task", "draw", "latent_dim").to_numpy().astype(float)
    latent = tree["trajectory"].to_dataset()["latent"].sel(episode=list(shown)).to_numpy().swapaxes(0, 1).astype(float)
    acted = latent[:, :, None] if latent.shape[-1] == z.shape[-1] else np.empty((*latent.shape[:2], 0, z.shape[-1]))
    goals, goal = (decode(part.reshape(-1, z.shape[-1])).reshape(*part.shape[:3], 2) for part in (z, acted))
    return goals, goal


def _draw_path(axes: Axes, states: np.ndarray, goal: np.ndarray) -> None:
    axes.plot(*states.T, color=INK, linewidth=1.3, marker="o", markersize=1.8, label="path")
    axes.plot(*states[0], color="white", markeredgecolor=INK, marker="s", markersize=5, linestyle="", label="start")
    axes.plot(*goal, color=GOAL, markeredgecolor="white", marker="*", markersize=13, linestyle="", label="goal")
    axes.set(aspect="equal", xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    axes.grid(False)


def _draw_imagined(axes: Axes, drawn: np.ndarray, acted: np.ndarray) -> None:
    axes.scatter(
        drawn[:, 0], drawn[:, 1], s=5, color=LEARNED, alpha=0.5, linewidths=0, label="goals the agent thinks possible"
    )
    axes.scatter(
        acted[:, 0],
        acted[:, 1],
        s=60,
        facecolors="none",
        edgecolors=LEARNED,
        linewidths=1.6,
        label="the one it acts on",
    )


def _draw_belief(axes: Axes, belief: Weighted, task: int) -> None:
    points, mass = belief.points[task].numpy(), belief.log_weights[task].exp().numpy()
    axes.plot([], [], color="#b8c1cc", marker="s", linestyle="", markersize=7, label="exact belief")
    if not (belief.cell > 0).all():
        axes.scatter(points[:, 0], points[:, 1], c=_shade(mass), s=18, linewidths=0)
        return
    blocks = round(len(points) ** 0.5) // _BLOCK
    image = mass.reshape(blocks, _BLOCK, blocks, _BLOCK).sum((1, 3)).T  # the first coordinate runs along x
    low, high = points.min(0) - belief.cell.numpy() / 2, points.max(0) + belief.cell.numpy() / 2
    axes.imshow(_shade(image), extent=(low[0], high[0], low[1], high[1]), origin="lower")


def _shade(mass: np.ndarray) -> np.ndarray:
    """Greys: by the root of the mass, so that thin rings show, and the darker the surer the belief is as a whole."""
    entropy = -(mass[mass > 0] * np.log(mass[mass > 0])).sum()
    darkest = 0.18 + 0.6 * (1 - entropy / np.log(mass.size))
    return colormaps["Greys"](darkest * np.sqrt(mass / mass.max()))


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
