"""What a latent without ground truth knows: the true task parameters decoded from it on held-out tasks.

A learned latent has no true value, but the task does. For every context size, ridge regression of the true parameters
on the posterior mean, fitted on other tasks than it is judged on, shows how much of the task the belief identifies by
then. Where the family's exact posterior is known, its mean is the best any procedure can do with the same data:

    RMSE(n) = sqrt( mean over tasks of || decoded or exact posterior mean after n data - true parameters ||^2 ).
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from bayesmeta.diagnostics.calibration import sbc_group, tarp
from bayesmeta.diagnostics.results import array, parameters
from bayesmeta.diagnostics.uniformity import pit
from bayesmeta.types import Context, Inference

FOLDS = 5
_DIMS = ("context_step", "task", "param")
_PENALTIES = np.logspace(-4, 4, 25)
_MAX_QUADRATIC = 12  # dimensions: beyond it the products outnumber the tasks
_ROWS = 1 << 10  # rows of context given to an exact posterior at once: grids need much memory per row


def decode(tree: xr.DataTree) -> xr.Dataset:
    """Cross-fitted predictions of the task parameters from the posterior means: ``mean [context_step, task, param]``.

    Raises ValueError for fewer tasks than twice the number of folds.
    """
    _, truth = parameters(tree)
    predictions = [cross_fitted(mean, truth) for mean in array(tree, "fit_stats", "mean").astype(float)]
    return xr.Dataset({"mean": (_DIMS, np.stack(predictions))}, _coordinates(tree))


def _coordinates(tree: xr.DataTree) -> dict[str, Any]:
    labels = {name: array(tree, "posterior", name) for name in ("context_step", "task")}
    return {**labels, "param": list(parameters(tree)[0])}


def cross_fitted(features: Float[np.ndarray, "B F"], targets: Float[np.ndarray, "B M"]) -> Float[np.ndarray, "B M"]:
    """Predictions for every task by :func:`probe` fitted on the other folds.

    Tasks with the same parameters share a fold, so that none is judged by a probe that was fitted on itself, unless
    there are only a few different ones (directions, say).
    """
    predictions = np.empty_like(targets, dtype=float)
    for fit, test in _folds(targets):
        predictions[test] = probe(features[fit], targets[fit])(features[test])
    return predictions


def _folds(targets: Float[np.ndarray, "B M"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tasks to fit on and tasks to judge, five times."""
    if len(targets) < 2 * FOLDS:
        raise ValueError(f"decoding: expected at least {2 * FOLDS} tasks for {FOLDS} folds, got {len(targets)}")
    _, task = np.unique(targets, axis=0, return_inverse=True)
    fold = (task.reshape(-1) if task.max() + 1 >= 2 * FOLDS else np.arange(len(targets))) % FOLDS
    for held_out in range(FOLDS):
        yield fold != held_out, fold == held_out


Predictor = Callable[[np.ndarray], np.ndarray]


def probe(features: Float[np.ndarray, "F D"], targets: Float[np.ndarray, "F M"]) -> Predictor:
    """Ridge regression, linear or quadratic in the features, whichever has the lower leave-one-out error.

    Returns the fitted function ``[T, D] -> [T, M]``.
    """
    expansions = [_linear, _quadratic] if features.shape[1] <= _MAX_QUADRATIC else [_linear]
    fits = [(expand, *_ridge(expand(features), targets)) for expand in expansions]
    expand, _, predict = min(fits, key=lambda fit: fit[1])
    return lambda new: predict(expand(new))


def decoder(tree: xr.DataTree, draws: int = 20) -> Predictor:
    """What task a latent stands for: the probe from posterior draws after all data to the true parameters."""
    _, truth = parameters(tree)
    z = array(tree, "posterior", "z")[0, :draws, -1].astype(float)
    return probe(z.reshape(-1, z.shape[-1]), np.tile(truth, (len(z), 1)))


def decoded_ranks(tree: xr.DataTree, seed: int = 0, draws: int = 100) -> xr.Dataset | None:
    r"""Calibration of what a latent without ground truth says of the task: the group ``prior_sbc``, in its parameters.

    What a latent means is read off the beliefs after all data: a probe from their means to the true parameters, fitted
    on other tasks, whose noise has the covariance that the probe's residuals have beyond the beliefs' own. Draws of a
    belief after fewer data, decoded with that noise, should then rank the true parameters uniformly: ``decoded [..,
    param]`` and ``tarp``. An over-confident belief after all data cannot be told from a probe that fits badly; after
    fewer data it can, and context sizes at which the squared error is below four times the probe's are left out;
    None if there are no others.
    """
    random = np.random.default_rng(seed)
    _, truth = parameters(tree)
    z = array(tree, "posterior", "z")[0, :draws].astype(float)  # [L, C, B, D]
    means = array(tree, "fit_stats", "mean")[-1].astype(float)
    drawn = np.empty((*z.shape[:3], truth.shape[1]))
    probe_error = 0.0
    for fit, test in _folds(truth):
        predict = probe(means[fit], truth[fit])
        probe_error += np.square(truth[fit] - predict(means[fit])).sum(1).mean() / FOLDS
        noise = _excess(truth[fit] - predict(means[fit]), predict(z[:, -1, fit].reshape(-1, z.shape[-1])), len(z))
        held_out = predict(z[:, :, test].reshape(-1, z.shape[-1])).reshape(*z.shape[:2], -1, truth.shape[1])
        drawn[:, :, test] = held_out + random.multivariate_normal(np.zeros(len(noise)), noise, held_out.shape[:3])
    error = np.square(drawn.mean(0) - truth).sum(-1).mean(1)
    judged = [c for c in range(len(error)) if error[c] > 4 * probe_error]
    if not judged:
        return None
    others = np.roll(truth, 1, 0)
    found = {
        "decoded": np.stack([pit(truth, drawn[:, c], random) for c in judged]),
        "tarp": np.stack([tarp(truth, drawn[:, c], others, random) for c in judged]),
    }
    group = sbc_group(found, array(tree, "posterior", "context_step")[judged].tolist(), "param")
    return group.assign_coords(param=list(parameters(tree)[0]))


def _excess(residuals: np.ndarray, decoded: np.ndarray, draws: int) -> np.ndarray:
    """Covariance of the residuals beyond the mean covariance of the beliefs' decoded draws, no direction below zero."""
    within = decoded.reshape(draws, -1, decoded.shape[-1])
    spread = (within - within.mean(0)).reshape(-1, decoded.shape[-1])
    excess = residuals.T @ residuals / len(residuals) - spread.T @ spread / len(spread)
    values, vectors = np.linalg.eigh(excess)
    return (vectors * np.maximum(values, 0)) @ vectors.T


def _linear(x: np.ndarray) -> np.ndarray:
    return x


def _quadratic(x: np.ndarray) -> np.ndarray:
    first, second = np.triu_indices(x.shape[1])
    return np.concatenate([x, x[:, first] * x[:, second]], 1)


def _ridge(x: np.ndarray, y: np.ndarray) -> tuple[float, Predictor]:
    """The leave-one-out error at the best penalty, and the function fitted there. Constant features are left out."""
    centre, scale, offset = x.mean(0), x.std(0), y.mean(0)
    varying = scale > 1e-9 * (1 + np.abs(centre))

    def standardised(rows: np.ndarray) -> np.ndarray:
        return (rows - centre)[:, varying] / scale[varying]

    u, s, vt = np.linalg.svd(standardised(x), full_matrices=False)
    rotated = u.T @ (y - offset)

    def error(penalty: float) -> float:
        shrink = s**2 / (s**2 + penalty)
        leverage = (u**2) @ shrink + 1 / len(x)
        residual = (y - offset - u @ (shrink[:, None] * rotated)) / np.maximum(1 - leverage, 1e-6)[:, None]
        return float((residual**2).mean())

    best = min(_PENALTIES, key=error)
    weights = vt.T @ ((s / (s**2 + best))[:, None] * rotated)
    return error(best), lambda rows: standardised(rows) @ weights + offset


@torch.no_grad()
def exact_curve(exact: Inference, context: Context, tree: xr.DataTree) -> xr.Dataset:
    """Mean and standard deviation of the exact posterior of the task parameters at the context sizes of the results.

    ``exact`` is a filter (``update`` twice equals ``update`` once) over the task parameters in their order.
    """
    steps = array(tree, "posterior", "context_step")
    per_chunk = max(1, _ROWS // max(1, context.size))
    chunks = []
    for start in range(0, context.batch, per_chunk):
        rows = slice(start, start + per_chunk)
        part = Context(context.x[rows], context.y[rows], context.mask[rows])
        belief, seen, moments = exact.init(part.batch), 0, []
        for step in steps.tolist():
            belief, seen = exact.update(belief, part.rows(seen, step)) if step > seen else belief, step
            posterior = belief.posterior
            moments.append(torch.stack([posterior.mean, posterior.variance.sqrt()]))
        chunks.append(torch.stack(moments, 1))
    mean, sd = torch.cat(chunks, 2).cpu().numpy()
    return xr.Dataset({"mean": (_DIMS, mean), "sd": (_DIMS, sd)}, _coordinates(tree))


def value_errors(tree: xr.DataTree) -> dict[str, Float[np.ndarray, "C B"]]:
    """Mean squared error of a function's values at its probes: the ``belief``'s mean's, and ``exact`` inference's.

    None where the latent are no function's values or their true values are unknown.
    """
    constant = tree["constant_data"].to_dataset()
    if "latent_truth" not in constant:
        return {}
    truth, means = constant["latent_truth"].to_numpy(), {"belief": array(tree, "fit_stats", "mean")}
    if "distance" in tree.children:
        means["exact"] = array(tree, "distance", "reference_mean")
    return {name: ((mean - truth) ** 2).mean(-1) for name, mean in means.items()}


def squared_errors(tree: xr.DataTree, group: str) -> Float[np.ndarray, "C B"]:
    """Squared distance of a group's ``mean`` from the true parameters, per context size and task."""
    _, truth = parameters(tree)
    return ((array(tree, group, "mean") - truth) ** 2).sum(-1)
