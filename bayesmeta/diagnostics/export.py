"""From library objects to results: one call for any inference procedure, a user's own included."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta import __version__
from bayesmeta.collect import Rollout
from bayesmeta.diagnostics.information import contraction, marginal_kl, total_kl
from bayesmeta.diagnostics.results import tree_of
from bayesmeta.inference.mcmc import NUTS
from bayesmeta.models.distributions import Cells
from bayesmeta.models.task_model import TaskModel
from bayesmeta.train import seeded
from bayesmeta.types import Context, Inference, Spec

_ROWS = 1 << 16  # rows of context given to an inference procedure at once, all tasks together
_ELEMENTS = 1 << 24
_OBSERVATIONS = 4_000_000  # numbers of `obs` kept in the file at most: 16 MB


def context_sizes(size: int, ends: Sequence[int] = ()) -> tuple[int, ...]:
    """Numbers of data at which the belief is recorded: 0, 1, 2, 5, 10, 20, ... within the first episode, and all ends.

    Without episodes the ladder goes on to ``size``, which is always the last.
    """
    first = ends[0] if ends else size
    ladder = [m * 10**k for k in range(len(str(first))) for m in (1, 2, 5) if m * 10**k < first]
    return tuple(sorted({0, *ladder, *ends, size}))


@torch.no_grad()
def results_from(
    seen: Rollout | Context,
    params: Float[Tensor, "B M"],
    inference: Inference,
    spec: Spec,
    *,
    sizes: Sequence[int] | None = None,
    draws: int = 200,
    seed: int = 0,
    model: TaskModel | None = None,
    references: Mapping[str, Float[Tensor, "B"]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """The beliefs of ``inference`` about the tasks ``params`` at prefixes of what was seen of them.

    The belief after ``n`` data is ``inference.update(inference.init(B), first n rows)`` for every ``n`` in ``sizes``
    (default :func:`context_sizes`), the prior for ``n = 0``; ``draws`` are taken of each, seeded with ``seed``, and the
    global random state is left as it was. ``model`` is the generative model whose latent the procedure infers, if there
    is one: it gives the joint log density of every draw. ``references`` are returns to compare with, by name
    (``family.reference_returns(params)``). Raises ValueError where the tasks or sizes do not fit the data.
    """
    if isinstance(seen, Rollout):
        context = seen.transitions.context(next_obs=spec.dynamics_vary)
        ends = np.cumsum([episode.reward.shape[1] for episode in seen.episodes]).tolist()
    else:
        context, ends = seen, []
    if len(params) != context.batch or params.shape[1] != spec.param_dim:
        raise ValueError(
            f"results_from: expected parameters [{context.batch}, {spec.param_dim}] for the tasks of the data, got "
            f"{tuple(params.shape)}"
        )
    if sizes is None:
        sizes = context_sizes(context.size, ends)
    elif sorted({0, *sizes}) != list(sizes) or sizes[-1] > context.size:
        raise ValueError(
            f"results_from: expected sizes that begin with 0, increase and end by {context.size} rows, got "
            f"{list(sizes)}"
        )
    with seeded(seed):
        groups = _belief_groups(context, inference, sizes, draws, model)
    groups["constant_data"] = xr.Dataset(
        {f"{name}_true": ("task", _array(params[:, m])) for m, name in enumerate(spec.param_names)}
    )
    if isinstance(seen, Rollout):
        groups["trajectory"] = _trajectory(seen, references or {})
    else:
        groups["observed_data"], inputs = _observed(seen)
        groups["constant_data"] = groups["constant_data"].merge(inputs)
    for name, group in groups.items():
        groups[name] = _labelled(group, sizes, spec)
    return tree_of(
        groups,
        {
            "bayesmeta_version": __version__,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "family": spec.name,
            "param_names": list(spec.param_names),
            "inference_library": "bayesmeta",
            "inference": type(inference).__name__,
            "inference_kind": inference_kind(inference),
            "seed": seed,
            **(attrs or {}),
        },
    )


def inference_kind(inference: Inference) -> str:
    """``mcmc`` for chains, ``amortised`` for a procedure with learned parameters, else ``exact``."""
    if isinstance(inference, NUTS):
        return "mcmc"
    learned = isinstance(inference, nn.Module) and any(p.requires_grad for p in inference.parameters())
    return "amortised" if learned else "exact"


def _belief_groups(
    context: Context, inference: Inference, sizes: Sequence[int], draws: int, model: TaskModel | None
) -> dict[str, xr.Dataset]:
    """posterior, prior, sample_stats and fit_stats, computed a few tasks at a time."""
    per_chunk = max(1, _ROWS // max(1, context.size))
    chunks = [_chunk(part, inference, sizes, draws, model) for part in _tasks(context, per_chunk)]
    found = {name: np.concatenate([chunk[name] for chunk in chunks], _task_axis(name)) for name in chunks[0]}
    per_draw = ("draw", "context_step", "task")
    per_latent = ("context_step", "task", "latent_dim")
    stats = ("mean", "sd", "contraction", "kl")
    return {
        "posterior": xr.Dataset({"z": ((*per_draw, "latent_dim"), found["z"])}).expand_dims(chain=[0]),
        "prior": xr.Dataset({"z": (("draw", "task", "latent_dim"), found["prior"])}).expand_dims(chain=[0]),
        "sample_stats": xr.Dataset(
            {name: (per_draw, found[name]) for name in ("log_q", "lp") if name in found}
        ).expand_dims(chain=[0]),
        "fit_stats": xr.Dataset(
            {
                **{name: (per_latent, found[name]) for name in stats},
                **{name: (("context_step", "task"), found[name]) for name in ("kl_total", "n_context")},
            }
        ),
    }


def _task_axis(name: str) -> int:
    """Arrays are [draw, context_step, task, ...], without what they do not have; the prior has no context_step."""
    return 2 if name in ("z", "log_q", "lp") else 1


def _chunk(
    context: Context, inference: Inference, sizes: Sequence[int], draws: int, model: TaskModel | None
) -> dict[str, np.ndarray]:
    """Arrays of some tasks; ``_task_axis`` is the axis of the tasks in each."""
    prior = inference.init(context.batch).posterior
    rows: list[dict[str, Tensor]] = []
    for size in sizes:
        prefix = context.rows(0, size)
        belief = inference.init(context.batch)
        posterior = (inference.update(belief, prefix) if size else belief).posterior
        z = posterior.sample(torch.Size((draws,)))
        row = {
            "z": z,
            "log_q": torch.cat([posterior.log_prob(part) for part in z.split(_draws_at_once(posterior))]),
            "mean": posterior.mean,
            "sd": posterior.variance.sqrt(),
            "contraction": contraction(posterior, prior),
            "kl": marginal_kl(posterior, prior),
            "kl_total": total_kl(posterior, prior, z),
            "n_context": prefix.mask.sum(1).to(torch.int32),
        }
        if model is not None:
            row["lp"] = model.log_joint(z, prefix)
        rows.append(row)
    stacked = {name: torch.stack([row[name] for row in rows], _task_axis(name) - 1) for name in rows[0]}
    return {name: _array(value) for name, value in {**stacked, "prior": prior.sample(torch.Size((draws,)))}.items()}


def _draws_at_once(posterior: Distribution) -> int:
    """The density of a weighted set compares every draw with every point: a few draws at a time."""
    return max(1, _ELEMENTS // posterior.points.numel()) if isinstance(posterior, Cells) else 1 << 30


def _tasks(context: Context, count: int) -> Iterator[Context]:
    for start in range(0, context.batch, count):
        stop = start + count
        yield Context(context.x[start:stop], context.y[start:stop], context.mask[start:stop])


def _trajectory(rollout: Rollout, references: Mapping[str, Tensor]) -> xr.Dataset:
    """Returns, rewards and, unless they are too many, states and actions of the whole trial."""
    steps = rollout.transitions
    episode = np.repeat(np.arange(1, len(rollout.episodes) + 1), [e.reward.shape[1] for e in rollout.episodes])
    variables = {
        "return": (("task", "episode"), _array(rollout.returns)),
        "latent": (("task", "episode", "read_dim"), _array(rollout.latents)),
        "reward": (("task", "t"), _array(steps.reward)),
        "real": (("task", "t"), _array(steps.mask)),
        "episode_of_t": (("t",), episode),
        **{f"reference_{name}": (("task",), _array(value)) for name, value in references.items()},
    }
    if 2 * steps.obs.numel() <= _OBSERVATIONS:
        variables["obs"] = (("task", "t", "obs_dim"), _array(steps.obs))
        variables["next_obs"] = (("task", "t", "obs_dim"), _array(steps.next_obs))
        variables["action"] = (("task", "t", "action_dim"), _array(steps.action))
    return xr.Dataset(variables, {"episode": np.arange(1, len(rollout.episodes) + 1)})


def _observed(context: Context) -> tuple[xr.Dataset, xr.Dataset]:
    """Targets, and inputs with the task and the position of each, one row per real datum: no padding in a file."""
    task, step = context.mask.nonzero(as_tuple=True)
    return xr.Dataset({"y": (("obs", "y_dim"), _array(context.y[task, step]))}), xr.Dataset(
        {
            "x": (("obs", "x_dim"), _array(context.x[task, step])),
            "task_of_obs": ("obs", _array(task)),
            "step_of_obs": ("obs", _array(step)),
        }
    )


def _labelled(group: xr.Dataset, sizes: Sequence[int], spec: Spec) -> xr.Dataset:
    """Coordinates of whatever dimensions the group has."""
    labels = {
        "context_step": np.asarray(sizes),
        "task": [f"task_{b:03d}" for b in range(group.sizes.get("task", 0))],
        "param": list(spec.param_names),
    }
    named = {dim: labels[dim] for dim in group.dims if dim in labels}
    counted = {
        dim: np.arange(size) for dim, size in group.sizes.items() if dim not in named and dim not in group.coords
    }
    return group.assign_coords({**named, **counted})


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()
