"""What a latent without ground truth knows: the true task parameters decoded from it on held-out tasks.

A learned latent has no true value, but the task does. For every context size, ridge regression of the true parameters
on the posterior mean, fitted on other tasks than it is judged on, shows how much of the task the belief identifies by
then. Where the family's exact posterior is known, its mean is the best any procedure can do with the same data:

    RMSE(n) = sqrt( mean over tasks of || decoded or exact posterior mean after n data - true parameters ||^2 ).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from bayesmeta.diagnostics.results import array, parameters
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
    if len(features) < 2 * FOLDS:
        raise ValueError(f"cross_fitted: expected at least {2 * FOLDS} tasks for {FOLDS} folds, got {len(features)}")
    _, task = np.unique(targets, axis=0, return_inverse=True)
    fold = (task.reshape(-1) if task.max() + 1 >= 2 * FOLDS else np.arange(len(features))) % FOLDS
    predictions = np.empty_like(targets, dtype=float)
    for held_out in range(FOLDS):
        fit, test = fold != held_out, fold == held_out
        predictions[test] = probe(features[fit], targets[fit])(features[test])
    return predictions


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


def squared_errors(tree: xr.DataTree, group: str) -> Float[np.ndarray, "C B"]:
    """Squared distance of a group's ``mean`` from the true parameters, per context size and task."""
    _, truth = parameters(tree)
    return ((array(tree, group, "mean") - truth) ** 2).sum(-1)
