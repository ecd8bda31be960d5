"""Predictions of unseen data as groups of the results: what a belief predicts, how well, and of unlike tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.diagnostics.export import posterior_after, tasks_at_once
from bayesmeta.diagnostics.predictive import Predictive, class_reliability, predict, predictive_scores
from bayesmeta.diagnostics.scores import Auroc
from bayesmeta.diagnostics.uniformity import pit
from bayesmeta.models.network_model import inductive
from bayesmeta.models.task_model import TaskModel
from bayesmeta.train import derived_seed, seeded
from bayesmeta.types import Context, Inference, Spec

ELEMENTS = 1 << 25  # numbers of all draws of a latent in memory at once: 128 MiB in fp32
_UNITS = 64  # numbers that a network makes of one datum on its way, about


@torch.no_grad()
def predicted_after(
    inference: Inference,
    model: TaskModel,
    support: Context,
    query: Context,
    spec: Spec,
    *,
    draws: int = 200,
    seed: int = 0,
    transductive: bool = False,
) -> Predictive:
    """The predictive of the ``query`` data from the belief after ``support``, each datum by itself.

    With ``transductive``, a task's queries together, which matters to batch normalisation. A few tasks at a time, so
    that latents of many thousand weights and what a network makes of the queries fit into memory; a belief that is a
    point is evaluated once and not for every draw.
    """
    prior = inference.init(1).posterior
    per_task = (prior.event_shape.numel() + _UNITS * query.size) * (1 if isinstance(prior, Delta) else draws)
    at_once = max(1, min(ELEMENTS // per_task, tasks_at_once(support, spec)))
    parts = []
    for start in range(0, support.batch, at_once):
        seen, asked = (Context(*(v[start : start + at_once] for v in (c.x, c.y, c.mask))) for c in (support, query))
        with seeded(seed):
            posterior = posterior_after(inference, seen)
        given = model if transductive else inductive(model, seen)
        given = _AtPoint(given) if isinstance(posterior, Delta) else given
        own = derived_seed(seed, f"predictive draws of task {start} on")
        parts.append(predict(posterior, given, asked, draws=draws, seed=own))
    return _joined(parts)


class _AtPoint(TaskModel):
    """A model whose draws are all the same point: its likelihood is computed for one of them."""

    def __init__(self, model: TaskModel) -> None:
        super().__init__()
        self.model = model

    def prior(self, batch: int) -> Distribution:
        return self.model.prior(batch)

    def likelihood(self, z: Float[Tensor, "S B 1 D"], data: Context) -> Distribution:
        law = self.model.likelihood(z[:1], data)
        return law.expand(torch.Size((len(z), *law.batch_shape[1:])))


def _joined(parts: Sequence[Any]) -> Any:
    """Records of some tasks each as one of all; draws have their tasks in the second place."""
    if parts[0] is None:
        return None
    found = {}
    for field in fields(parts[0]):
        values = [getattr(part, field.name) for part in parts]
        if field.name == "classes":
            found[field.name] = _joined(values)
        else:
            found[field.name] = torch.cat(values, 1 if field.name == "draws" else 0)
    return type(parts[0])(**found)


def predictive_group(predicted: Predictive, task: Sequence[Any] | np.ndarray, seed: int) -> xr.Dataset:
    """Scores of all data together and of each task, and PIT values; all query data are real. ``task`` are labels.

    These PIT are ranks among draws of the predictive, which are uniform for exact inference however few the draws: the
    mixture over draws, on which the scores are based, has lighter tails than the predictive itself.
    """
    found = predictive_scores(predicted)
    ranked = pit(predicted.y.cpu().numpy(), predicted.draws.cpu().numpy(), np.random.default_rng(seed))
    observed = {}
    if predicted.classes is not None:
        frequencies = class_reliability(predicted)
        observed = {name: ("bin", getattr(frequencies, name)) for name in ("confidence", "accuracy", "count")}
    return xr.Dataset(
        {
            **observed,
            "value": ("score", np.array([score.value for score in found.values()])),
            "by_task": (("score", "task"), np.stack([score.tasks for score in found.values()])),
            "pit": (("task", "query", "target"), ranked),
        },
        {"score": list(found), "task": task},
    )


def ood_group(areas: Mapping[str, Auroc]) -> xr.Dataset:
    """The areas under the curves of :func:`bayesmeta.diagnostics.held_out.ood_auroc` with their intervals."""
    columns = {"auroc": "value", "low": "low", "high": "high"}
    return xr.Dataset(
        {name: ("scored_by", np.array([getattr(a, field) for a in areas.values()])) for name, field in columns.items()},
        {"scored_by": list(areas)},
    )
