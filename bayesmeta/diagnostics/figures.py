"""The figures of a report that any family has, each from the results alone."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.figure import Figure

from bayesmeta.diagnostics.decoding import squared_errors
from bayesmeta.diagnostics.information import ACTIVE_NATS, active_dimensions
from bayesmeta.diagnostics.intervals import bootstrap_interval
from bayesmeta.diagnostics.latent import is_functional, latent_names
from bayesmeta.diagnostics.plotting import (
    COLOURS,
    EXACT,
    LEARNED,
    MUTED,
    REFERENCE,
    band,
    context_axis,
    log_axis,
    ordered,
    panel,
)
from bayesmeta.diagnostics.results import array, attribute, episode_ends, parameters
from bayesmeta.diagnostics.tables import references

_REFERENCE_STYLES = {
    **{"oracle": (REFERENCE, "-"), "upper_bound": (REFERENCE, "--"), "thompson": (EXACT, "-")},
    **{"thompson_redrawn": (EXACT, "-"), "thompson_kept": (EXACT, "--")},
}
_DIMENSIONS = 6  # latent dimensions drawn at most, those with the most information
_REFERENCE_NAMES = {
    "oracle": "oracle: told the task",
    "still": "standing still",
    "walking": "without knowing the task",
    "upper_bound": "upper bound",
    "thompson": "exact posterior sampling",
    "thompson_redrawn": "exact posterior sampling, drawn anew when contradicted",
    "thompson_kept": "exact posterior sampling, one draw an episode",
    "bayes_optimal": "Bayes-optimal",
}


def adaptation(tree: xr.DataTree) -> Figure:
    """Return of every adaptation episode that is paid, with the reference lines that the family knows."""
    group = tree["trajectory"].dataset
    unpaid = attribute(tree, "exploration_episodes", 0)
    returns = group["return"].values[:, unpaid:]
    episodes = group["episode"].values[unpaid:]
    figure, axes = panel()
    jitter = np.random.default_rng(0).uniform(-0.12, 0.12, returns.shape)
    axes.scatter(episodes + jitter, returns, s=7, color=MUTED, alpha=0.35, linewidths=0, label="one task")
    band(axes, episodes, returns.mean(0), bootstrap_interval(returns), LEARNED, "mean, 95 % interval")
    for name, values in references(group).items():
        style = _REFERENCE_STYLES.get(name, (EXACT, ":"))
        line = np.broadcast_to(values.mean(0), returns.shape[1:])
        where = episodes if len(episodes) > 1 else episodes + np.array([-0.5, 0.5])
        line = line if len(episodes) > 1 else line.repeat(2)
        axes.plot(where, line, color=style[0], linestyle=style[1], label=_REFERENCE_NAMES.get(name, name))
    axes.set(xlabel="adaptation episode", ylabel="return (sum of rewards)", title="Return as the agent adapts")
    axes.set_xticks(episodes)
    if "unseen" in tree.children:
        other = array(tree, "unseen", "return")[:, unpaid:]
        low, high = bootstrap_interval(other)
        error = np.stack([other.mean(0) - low, high - other.mean(0)])
        label = "mean, problems not trained on"
        axes.errorbar(episodes + 0.2, other.mean(0), error, color=COLOURS[3], marker="D", linestyle="", label=label)
    if unpaid:
        axes.set_title("Return after exploration")
        figure.set_figheight(5.2)
        figure.legend(loc="outside lower left")
    else:
        axes.legend(loc="best")
    return figure


def learned_and_exact(tree: xr.DataTree) -> Figure:
    """Error of the decoded parameters against context size, beside the exact posterior's where it is known."""
    steps = array(tree, "posterior", "context_step").tolist()
    names, truth = parameters(tree)
    figure, axes = panel()
    for group, colour, label in (("decoded", LEARNED, "decoded from the belief"), ("exact", EXACT, "exact posterior")):
        if group in tree.children:
            errors = squared_errors(tree, group)
            interval = [np.sqrt(end) for end in bootstrap_interval(errors.T)]
            band(axes, steps, np.sqrt(errors.mean(1)), interval, colour, label)
    if "exact" in tree.children:
        spread = np.sqrt((array(tree, "exact", "sd") ** 2).sum(-1).mean(1))
        axes.plot(steps, spread, color=EXACT, linestyle=":", label="exact posterior's own sd")
    prior = np.sqrt(((truth - truth.mean(0)) ** 2).sum(1).mean())
    axes.axhline(prior, color=MUTED, linewidth=1, linestyle="--", label="knowing nothing")
    log_axis(axes)
    shown = f"({', '.join(names)})" if len(names) <= 2 else f"the {len(names)} task parameters"
    axes.set(ylabel=f"RMSE of {shown}", title="What is known of the task")
    context_axis(axes, steps, episode_ends(tree))
    axes.legend(loc="lower left")
    return figure


def most_active(tree: xr.DataTree) -> list[int]:
    """The latent dimensions with the most information after all data, at most six; by contraction if it is unknown.

    Of a function's values, of which none is spare, some in their order.
    """
    if is_functional(tree):
        count = tree["posterior"].sizes["latent_dim"]
        return np.linspace(0, count - 1, min(count, _DIMENSIONS)).round().astype(int).tolist()
    stats = tree["fit_stats"].dataset
    kl = stats["kl"].values[-1].mean(0)
    score = stats["contraction"].values[-1].mean(0) if np.isnan(kl).any() else kl
    return np.argsort(-score)[:_DIMENSIONS].tolist()


def per_dimension(tree: xr.DataTree, variable: str, title: str, ylabel: str) -> Figure:
    """A statistic of each latent dimension against context size."""
    steps = array(tree, "posterior", "context_step").tolist()
    values = array(tree, "fit_stats", variable)
    low, high = bootstrap_interval(values.transpose(1, 0, 2))
    figure, axes = panel()
    names = latent_names(tree)
    for colour, d in zip(COLOURS, most_active(tree), strict=False):
        band(axes, steps, values[:, :, d].mean(1), (low[:, d], high[:, d]), colour, names[d])
    if variable == "kl":
        total = array(tree, "fit_stats", "kl_total").mean(1)
        axes.plot(steps, total, color=COLOURS[-1], linestyle="--", linewidth=1.3, label="all together")
    axes.axhline(0, color=MUTED, linewidth=0.9)
    axes.set(ylabel=ylabel, title=title)
    axes.set_ylim(top=max(0.1, axes.get_ylim()[1]))  # nothing learned looks like nothing
    context_axis(axes, steps, episode_ends(tree))
    axes.legend(loc="upper left", ncols=2)
    return figure


def active(tree: xr.DataTree) -> Figure:
    """Information in each latent dimension after all data, against the threshold of being active."""
    kl = array(tree, "fit_stats", "kl")[-1]
    mean, (low, high) = kl.mean(0), bootstrap_interval(kl)
    colours = [LEARNED if on else MUTED for on in active_dimensions(kl)]
    figure, axes = panel()
    floor = ACTIVE_NATS / 10
    error = np.stack([mean - low, high - mean])
    axes.bar(np.arange(len(mean)), np.maximum(mean, floor), color=colours, width=0.62, yerr=error, ecolor="#323f4b")
    axes.axhline(ACTIVE_NATS, color=EXACT, linestyle="--", linewidth=1.2, label=f"active above {ACTIVE_NATS} nat")
    axes.set_ylim(floor, max(4 * mean.max(), 10 * ACTIVE_NATS))
    log_axis(axes)
    axes.set_xlim(-0.7, max(len(mean), 5) - 0.3)
    named = range(0, len(mean), -(-len(mean) // 12))
    axes.set_xticks(list(named), [f"z{d}" for d in named])
    axes.set(xlabel="latent dimension", ylabel="KL from the prior (nats)")
    axes.set_title(f"{int(active_dimensions(kl).sum())} of {len(mean)} dimensions active")
    axes.grid(False, axis="x")
    axes.legend(loc="best")
    return figure


def prior_and_posterior(tree: xr.DataTree, tasks: int = 4) -> Figure:
    """Densities of the prior and of a few tasks' posteriors after all data, one plot per latent dimension."""
    dims, names = most_active(tree), latent_names(tree)
    columns = min(3, len(dims))
    rows = -(-len(dims) // columns)
    figure = Figure((max(5.6, 3.1 * columns), max(3.4, 2.3 * rows + 0.5)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    posterior, prior = array(tree, "posterior", "z")[:, :, -1], array(tree, "prior", "z")
    reference = array(tree, "reference", "z")[:, :, -1] if "reference" in tree.children else None
    for axes, d in zip(grid.flat, dims, strict=False):
        pooled = prior[..., d].ravel()[:4000]
        for b in range(min(tasks, posterior.shape[2])):
            axes.plot(*density(posterior[:, :, b, d].ravel()), color=COLOURS[b], linewidth=1.4, label=f"task {b}")
            if reference is not None:
                label = "reference" if b == 0 else None
                where, height = density(reference[:, :, b, d].ravel())
                axes.plot(where, height, color=COLOURS[b], linewidth=1, linestyle=":", label=label)
        axes.fill_between(*density(pooled), color=MUTED, alpha=0.3, linewidth=0, label="prior")
        axes.set(xlabel=names[d], yticks=[])
        axes.spines["left"].set_visible(False)
        axes.grid(False)
    for axes in grid.flat[len(dims) :]:
        axes.set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    figure.supylabel("density", fontsize=10)
    return figure


def density(draws: Float[np.ndarray, "S"], points: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian kernel estimate with Silverman's bandwidth: where, and how dense."""
    spread = min(draws.std(), (np.quantile(draws, 0.75) - np.quantile(draws, 0.25)) / 1.34) or draws.std() or 1e-3
    width = 0.9 * spread * len(draws) ** -0.2
    where = np.linspace(draws.min() - 3 * width, draws.max() + 3 * width, points)
    kernels = np.exp(-0.5 * ((where[:, None] - draws) / width) ** 2)
    return where, kernels.mean(1) / (width * np.sqrt(2 * np.pi))


def latent_map(tree: xr.DataTree, columns: int = 4) -> Figure:
    """Posterior means of all tasks in the plane of their two main directions, coloured by the true parameters.

    A latent of one dimension is shown against the true parameters themselves.
    """
    means = array(tree, "fit_stats", "mean").astype(float)
    steps = array(tree, "posterior", "context_step")
    names, truth = parameters(tree)
    planes, shares = principal_plane(means)
    chosen = np.unique(np.linspace(1, len(steps) - 1, min(columns, len(steps) - 1)).round().astype(int))
    rows = min(2, len(names))
    figure = Figure((2.45 * len(chosen) + 0.9, 2.35 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, len(chosen), squeeze=False, sharex=True, sharey=True)
    for m in range(rows):
        for axes, c in zip(grid[m], chosen, strict=True):
            second = truth[:, m] if means.shape[2] == 1 else planes[c][:, 1]
            points = axes.scatter(planes[c][:, 0], second, c=truth[:, m], s=16, cmap="viridis", linewidths=0)
            if m == 0:
                axes.set_title(f"{steps[c]} data seen", fontsize=9.5, fontweight="normal")
        figure.colorbar(points, ax=grid[m].tolist(), label=f"true {names[m]}", pad=0.01)
    figure.supxlabel(f"main direction of the posterior mean ({100 * shares[0]:.0f} % of its variance)", fontsize=10)
    figure.supylabel("true value" if means.shape[2] == 1 else f"second ({100 * shares[1]:.0f} %)", fontsize=10)
    return figure


def principal_plane(means: Float[np.ndarray, "C B D"]) -> tuple[Float[np.ndarray, "C B 2"], Float[np.ndarray, "2"]]:
    """All means projected on the two main directions of those after all data, and the variance these explain."""
    last = means[-1] - means[-1].mean(0)
    _, s, vt = np.linalg.svd(last, full_matrices=False)
    basis = np.zeros((2, means.shape[2]))
    basis[: min(2, len(vt))] = vt[:2]
    share = np.zeros(2)
    share[: min(2, len(s))] = (s**2 / max((s**2).sum(), 1e-300))[:2]
    return (means - means[-1].mean(0)) @ basis.T, share


def learning(
    records: Sequence[Mapping],
    steps: Mapping[int, float],
    labels: Sequence[str] | None = None,
    score: str = "return on test tasks",
) -> Figure:
    """Test score of each adaptation stage against training: iterations, or environment steps where known.

    ``labels`` are those of the stages, by default the episodes.
    """
    iterations = [record["iteration"] for record in records]
    known = all(iteration in steps for iteration in iterations)
    x = [steps[i] / 1000 for i in iterations] if known else iterations
    returns = np.array([record["returns"] for record in records])
    error = np.array([record["standard_error"] for record in records])
    figure, axes = panel()
    for k, colour in enumerate(ordered(returns.shape[1])):
        interval = (returns[:, k] - 1.96 * error[:, k], returns[:, k] + 1.96 * error[:, k])
        band(axes, x, returns[:, k], interval, colour, labels[k] if labels else f"episode {k + 1}")
    axes.set(xlabel="environment steps (thousands)" if known else "iteration", ylabel=score)
    axes.set_title("Learning curve")
    axes.legend(loc="best")
    return figure
