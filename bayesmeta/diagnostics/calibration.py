r"""Simulation-based calibration: truths from the prior, data from the truths, and where each truth falls in its belief.

Under exact inference the rank of any quantity ``f(z, data)`` at the true ``z`` among its values at posterior draws is
uniform (Talts et al. 2018). Four kinds of quantity are always ranked, because each is blind to what another sees:

- every coordinate of the latent: a bias, a wrong width;
- the log-likelihood of the data: a belief that ignores them, or some of them, or dependence between coordinates, all of
  which coordinates alone cannot tell from the exact one (Modrak et al. 2023);
- ``log q``, the belief's own density: its rank is the expected coverage of highest-density regions;
- TARP: distances from a point chosen by the data (Lemos et al. 2023), which need no density of the belief.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from bayesmeta.diagnostics.results import array
from bayesmeta.diagnostics.uniformity import log_gamma, p_value, pit
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context

Quantity = Callable[[Tensor, Context], Tensor]
LEVELS = (0.5, 0.8, 0.95)
ALPHA = 1e-3  # family-wise failure rate of the gates
_CANDIDATES = 32  # draws of the prior among which a TARP reference is chosen
_EVALUATIONS = 1 << 22  # (draw, task, datum) triples given to a model at once


def ranks(
    tree: xr.DataTree,
    context: Context,
    truth: Float[Tensor, "B D"],
    *,
    model: TaskModel | None = None,
    quantities: Mapping[str, Quantity] | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """The group ``prior_sbc`` of results that were made with this ``truth``: PIT in [0, 1], one draw per task.

    ``z [.., latent_dim]``, ``log_q`` where the belief has a density, ``log_likelihood`` where there is a ``model``,
    ``tarp``, and every one of ``quantities``: functions of ``z [*S, B, D]`` and the data that give ``[*S, B]``. After
    no data the log-likelihood is constant and its ranks are pure randomisation. The global random state is used for
    draws of the model's prior; ties are broken by ``seed``. Raises ValueError for a quantity with one of these names,
    or of a wrong shape.
    """
    taken = {"z", "tarp", "log_q", "log_likelihood"} & set(quantities or {})
    if taken:
        raise ValueError(f"quantities: expected names other than the library's own, got {', '.join(sorted(taken))}")
    random = np.random.default_rng(seed)
    z = array(tree, "posterior", "z")[0]  # [L, C, B, D]
    steps = array(tree, "posterior", "context_step").tolist()
    true = truth.cpu().numpy()
    asked: dict[str, Quantity] = {**(quantities or {})}
    if model is not None:
        asked = {"log_likelihood": model.log_likelihood, **asked}
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("z", "tarp", *asked)}
    for c, step in enumerate(steps):
        data, draws = context.rows(0, step), torch.as_tensor(z[:, c]).to(truth)
        rows["z"].append(pit(true, z[:, c], random))
        for name, quantity in asked.items():
            rows[name].append(pit(*_evaluated(name, quantity, truth, draws, data), random))
        rows["tarp"].append(tarp(true, z[:, c], _references(model, truth, data), random))
    found = {name: np.stack(values) for name, values in rows.items()}
    if "log_q_true" in tree["fit_stats"].data_vars:
        log_q = pit(array(tree, "fit_stats", "log_q_true"), array(tree, "sample_stats", "log_q")[0], random)
        if np.isfinite(log_q).all():
            found["log_q"] = log_q
    return sbc_group(found, steps)


def sbc_group(found: Mapping[str, np.ndarray], steps: list[int], inner: str = "latent_dim") -> xr.Dataset:
    """PIT values ``[C, B]`` or ``[C, B, inner]`` as a group whose draws are data sets, as ArviZ and simuk have it."""
    variables = {
        name: (("chain", "draw", "context_step", inner)[: 1 + values.ndim], values.swapaxes(0, 1)[None])
        for name, values in found.items()
    }
    group = xr.Dataset(variables, {"context_step": np.asarray(steps)})
    missing = [dim for dim in group.dims if dim not in group.coords]
    return group.assign_coords({dim: np.arange(group.sizes[dim]) for dim in missing})


def tarp(
    truth: Float[np.ndarray, "B D"],
    draws: Float[np.ndarray, "L B D"],
    references: Float[np.ndarray, "B D"],
    random: np.random.Generator,
) -> Float[np.ndarray, "B"]:
    """Ranks of the truth's distance from a reference among those of posterior draws (Lemos et al. 2023, theorem 1).

    Distances are in units of the truths' standard deviations. A test that no wrong belief passes needs references that
    depend on the data; references that do not, miss a belief that ignores them.
    """
    scale = np.maximum(truth.std(0), 1e-12)
    return pit(
        np.linalg.norm((truth - references) / scale, axis=-1),
        np.linalg.norm((draws - references) / scale, axis=-1),
        random,
    )


def _references(model: TaskModel | None, truth: Tensor, data: Context) -> np.ndarray:
    """The likeliest of a few draws of the prior; without a model the truth of another task, blind to the data."""
    if model is None:
        return truth.roll(1, 0).cpu().numpy()
    candidates = model.prior(len(truth)).sample(torch.Size((_CANDIDATES,)))
    best = model.log_likelihood(candidates, data).argmax(0)
    return candidates[best, torch.arange(len(truth))].cpu().numpy()


def _evaluated(
    name: str, quantity: Quantity, truth: Tensor, draws: Float[Tensor, "L B D"], data: Context
) -> tuple[np.ndarray, np.ndarray]:
    at_once = max(1, _EVALUATIONS // max(1, data.batch * data.size))
    at_truth = quantity(truth, data)
    at_draws = torch.cat([quantity(part, data) for part in draws.split(at_once)])
    if at_truth.shape != truth.shape[:1] or at_draws.shape != draws.shape[:2]:
        raise ValueError(
            f"quantity {name!r}: expected one number per task and draw, [{len(truth)}] at the truth and "
            f"{list(draws.shape[:2])} at the draws, got {list(at_truth.shape)} and {list(at_draws.shape)}; "
            f"let it broadcast over the leading axes of z"
        )
    return at_truth.cpu().numpy(), at_draws.cpu().numpy()


def calibration(sbc: xr.Dataset) -> xr.Dataset:
    """The group ``calibration`` of PIT values: the uniformity test, the band, and expected coverage.

    ``p_value`` and ``log_gamma [context_step, quantity]``, a quantity for every coordinate; ``coverage [context_step,
    level]`` is how often highest-density regions of the belief hold the truth, from the ranks of ``log q``.
    """
    columns = quantities_of(sbc)
    values = np.stack(list(columns.values()), -1)  # [B, C, Q]
    p = p_value(values)
    gamma = np.array([[log_gamma(values[:, c, q]) for q in range(p.shape[1])] for c in range(p.shape[0])])
    variables: dict = {
        "p_value": (("context_step", "quantity"), p),
        "log_gamma": (("context_step", "quantity"), gamma),
    }
    coordinates: dict = {"context_step": sbc["context_step"].to_numpy(), "quantity": list(columns)}
    if "log_q" in columns:
        covered = expected_coverage(columns["log_q"], np.array(LEVELS))
        variables["coverage"] = (("context_step", "level"), covered)
        coordinates["level"] = list(LEVELS)
    return xr.Dataset(variables, coordinates)


def expected_coverage(
    log_q_pit: Float[np.ndarray, "B *r"], levels: Float[np.ndarray, "P"]
) -> Float[np.ndarray, "*r P"]:
    """How often the highest-density region of each level holds the truth: the share with ``1 - PIT <= level``.

    Below the level: the belief is over-confident. Above: it is too wide.
    """
    return (1 - log_q_pit[..., None] <= levels).mean(0)


def quantities_of(sbc: xr.Dataset) -> dict[str, Float[np.ndarray, "B C"]]:
    """PIT values by name, coordinates one by one."""
    columns = {}
    for name in sbc.data_vars:
        values = sbc[name].to_numpy()[0]
        if values.ndim == 2:
            columns[str(name)] = values
            continue
        labels = sbc[sbc[name].dims[-1]].to_numpy()
        columns |= {f"{name}{d}" if name == "z" else str(d): values[..., k] for k, d in enumerate(labels)}
    return columns
