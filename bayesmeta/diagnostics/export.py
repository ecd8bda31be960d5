"""From library objects to results: one call for any inference procedure, a user's own included."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import repeat
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta import __version__
from bayesmeta.collect import Rollout
from bayesmeta.diagnostics.distances import MIN_DRAWS, distances, is_discrete, k_hat
from bayesmeta.diagnostics.information import contraction, marginal_kl, total_kl
from bayesmeta.diagnostics.results import tree_of
from bayesmeta.inference.mcmc import NUTS
from bayesmeta.models.cells import Cells
from bayesmeta.models.task_model import TaskModel
from bayesmeta.train import seeded
from bayesmeta.types import Context, Inference, Spec

_ROWS = 1 << 16  # rows of context given to an inference procedure at once, all tasks together
_PIXELS = 1 << 17  # and of images: convolutions make a hundred numbers of each, and keep them for a gradient
_ELEMENTS = 1 << 24
_SHOWN = 8  # tasks of which draws of the reference are kept
_FIT_STATS = ("mean", "sd", "contraction", "kl", "z_score", "kl_total", "n_context", "k_hat", "log_q_true")
_DISTANCES = ("kl_reference", "mean_error", "sd_ratio", "sliced_wasserstein", "reference_mean", "reference_sd")
MAX_NUMBERS = 4_000_000  # numbers of `obs` or of inputs kept in the file at most: 16 MB


@runtime_checkable
class OfTasks(Protocol):
    """A procedure that treats each of the tasks in its own way and has to be told which it is asked about."""

    def of_tasks(self, rows: slice) -> Inference:
        """The procedure for the tasks ``rows``."""
        ...


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
    truth: Float[Tensor, "B D"] | None = None,
    reference: Inference | None = None,
    references: Mapping[str, Float[Tensor, "B *K"]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """The beliefs of ``inference`` about the tasks ``params`` at prefixes of what was seen of them.

    The belief after ``n`` data is ``inference.update(inference.init(B), first n rows)`` for every ``n`` in ``sizes``
    (default :func:`context_sizes`), the prior for ``n = 0``; ``draws`` are taken of each, seeded with ``seed``, and the
    global random state is left as it was. ``model`` is the generative model whose latent the procedure infers, if there
    is one: it gives the joint log density of every draw and, from 25 draws on, the k-hat of every belief. ``truth`` is
    the true latent, if there is one: it gives z-scores, unless a belief is a point somewhere. ``reference`` is another
    procedure for the same latent, a filter: it gives its moments, the distances from it, and draws of its posterior for
    the first tasks. ``references`` are returns to compare with, by name, ``[B]`` or by episode ``[B, K]``. Raises
    ValueError where the tasks or sizes do not fit the data.
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
        groups = _belief_groups(
            context, _Beliefs(inference, sizes, draws, model, truth, reference), tasks_at_once(context, spec)
        )
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


@dataclass(frozen=True)
class _Beliefs:
    """What is asked of the beliefs of some tasks: at which sizes, how many draws, and what they are compared with."""

    inference: Inference
    sizes: Sequence[int]
    draws: int
    model: TaskModel | None
    truth: Float[Tensor, "B D"] | None
    reference: Inference | None

    def of(self, context: Context, rows: slice) -> dict[str, np.ndarray]:
        """Arrays of the tasks ``rows`` of a context; ``_task_axis`` is the axis of the tasks in each."""
        part = Context(context.x[rows], context.y[rows], context.mask[rows])
        truth = None if self.truth is None else self.truth[rows]
        inference, reference = _for_tasks(self.inference, rows), _for_tasks(self.reference, rows)
        prior = inference.init(part.batch).posterior
        compared = repeat(None) if reference is None else _one_after_another(reference, part, self.sizes)
        at_sizes = [
            self._at(inference, part.rows(0, size), prior, truth, exact)
            for size, exact in zip(self.sizes, compared, strict=False)
        ]
        names = _in_all(at_sizes)
        stacked = {name: torch.stack([row[name] for row in at_sizes], _task_axis(name) - 1) for name in names}
        stacked["prior"] = prior.sample(torch.Size((self.draws,)))
        return {name: _array(value) for name, value in stacked.items()}

    def _at(
        self,
        inference: Inference,
        prefix: Context,
        prior: Distribution,
        truth: Tensor | None,
        exact: Distribution | None,
    ) -> dict[str, Tensor]:
        posterior = posterior_after(inference, prefix)
        z = posterior.sample(torch.Size((self.draws,)))
        log_q = torch.cat([posterior.log_prob(part) for part in z.split(_draws_at_once(posterior))])
        found = {
            "z": z,
            "mean": posterior.mean,
            "sd": posterior.variance.sqrt(),
            "contraction": contraction(posterior, prior),
            "kl": marginal_kl(posterior, prior),
            "kl_total": total_kl(posterior, prior, z),
            "n_context": prefix.mask.sum(1).to(torch.int32),
        }
        law = prior if self.model is None else self.model.prior(prefix.batch)
        known = not bool(log_q.isnan().any())
        dense = known and is_discrete(posterior) == is_discrete(law)  # particles of a continuous latent have no density
        if known:
            found["log_q"] = log_q
        if self.model is not None:
            found["lp"] = self.model.log_joint(z, prefix)
            if dense and self.draws >= MIN_DRAWS:
                found["k_hat"] = k_hat(found["lp"] - log_q)
        if truth is not None:
            if bool((found["sd"] > 0).all()):
                found["z_score"] = (found["mean"] - truth) / found["sd"]
            if dense:
                found["log_q_true"] = posterior.log_prob(truth)
        if exact is not None:
            found["reference"] = exact.sample(torch.Size((self.draws,)))
            found["reference_mean"], found["reference_sd"] = exact.mean, exact.variance.sqrt()
            found |= distances(posterior, exact, z, found["reference"])
        return found


def tasks_at_once(context: Context, spec: Spec) -> int:
    """How many tasks with so many data each an inference procedure is given at once."""
    rows = max(1, context.size)
    return max(1, _PIXELS // (rows * spec.x_dim) if spec.x_shape else _ROWS // rows)


def _for_tasks(inference: Any, rows: slice) -> Any:
    return inference.of_tasks(rows) if isinstance(inference, OfTasks) else inference


def _in_all(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names that every part has: a prior may have a density where the particles that follow have none."""
    return [name for name in parts[0] if all(name in part for part in parts)]


def _one_after_another(inference: Inference, data: Context, sizes: Sequence[int]) -> Iterator[Distribution]:
    """Posteriors after the first ``sizes`` rows, each from the belief before: for filters, which exact ones are."""
    belief, seen = inference.init(data.batch), 0
    for size in sizes:
        belief = inference.update(belief, data.rows(seen, size)) if size > seen else belief
        seen = size
        yield belief.posterior


def posterior_after(inference: Inference, data: Context) -> Distribution:
    """What a procedure believes after some data: its prior where there is none, which not every ``update`` takes."""
    belief = inference.init(data.batch)
    return (inference.update(belief, data) if data.size else belief).posterior


def _belief_groups(context: Context, beliefs: _Beliefs, per_chunk: int) -> dict[str, xr.Dataset]:
    """posterior, prior, sample_stats, fit_stats and what there is to compare with, computed a few tasks at a time."""
    chunks = [beliefs.of(context, slice(b, b + per_chunk)) for b in range(0, context.batch, per_chunk)]
    found = {name: np.concatenate([chunk[name] for chunk in chunks], _task_axis(name)) for name in _in_all(chunks)}
    per_draw = ("draw", "context_step", "task")
    per_task = ("context_step", "task")

    def group(names: Sequence[str], dims: tuple[str, ...]) -> xr.Dataset:
        """Variables with the dimensions ``dims`` and, if they have one more, latent_dim."""
        kept = {name: found[name] for name in names if name in found}
        return xr.Dataset({n: ((*dims, "latent_dim")[: value.ndim], value) for n, value in kept.items()})

    groups = {
        "posterior": group(["z"], per_draw).expand_dims(chain=[0]),
        "prior": xr.Dataset({"z": (("draw", "task", "latent_dim"), found["prior"])}).expand_dims(chain=[0]),
    }
    if "log_q" in found or "lp" in found:
        groups["sample_stats"] = group(["log_q", "lp"], per_draw).expand_dims(chain=[0])
    groups["fit_stats"] = group(_FIT_STATS, per_task)
    if "reference" in found:
        shown = found["reference"][:, :, :_SHOWN]
        groups["reference"] = xr.Dataset({"z": ((*per_draw, "latent_dim"), shown)}).expand_dims(chain=[0])
        groups["distance"] = group(_DISTANCES, per_task)
    return groups


def _task_axis(name: str) -> int:
    """Arrays are [draw, context_step, task, ...], without what they do not have; the prior has no context_step."""
    return 2 if name in ("z", "log_q", "lp", "reference") else 1


def _draws_at_once(posterior: Distribution) -> int:
    """The density of a weighted set compares every draw with every point: a few draws at a time."""
    return max(1, _ELEMENTS // posterior.points.numel()) if isinstance(posterior, Cells) else 1 << 30


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
        **{f"reference_{n}": (("task", "episode")[: v.ndim], _array(v)) for n, v in references.items()},
    }
    if 2 * steps.obs.numel() <= MAX_NUMBERS:
        variables["obs"] = (("task", "t", "obs_dim"), _array(steps.obs))
        variables["next_obs"] = (("task", "t", "obs_dim"), _array(steps.next_obs))
        variables["action"] = (("task", "t", "action_dim"), _array(steps.action))
    return xr.Dataset(variables, {"episode": np.arange(1, len(rollout.episodes) + 1)})


def _observed(context: Context) -> tuple[xr.Dataset, xr.Dataset]:
    """Targets, and inputs with the task and the position of each, one row per real datum: no padding in a file.

    Inputs that are too many, large images, are left out.
    """
    task, step = context.mask.nonzero(as_tuple=True)
    inputs: dict[str, Any] = {"task_of_obs": ("obs", _array(task)), "step_of_obs": ("obs", _array(step))}
    if context.x.numel() <= MAX_NUMBERS:
        inputs["x"] = (("obs", "x_dim"), _array(context.x[task, step]))
    return xr.Dataset({"y": (("obs", "y_dim"), _array(context.y[task, step]))}), xr.Dataset(inputs)


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
