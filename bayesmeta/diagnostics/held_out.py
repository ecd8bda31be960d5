"""Held-out protocols: predictions for unseen data of seen tasks, and telling unlike tasks from those of the prior."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.diagnostics import scores
from bayesmeta.diagnostics.export import posterior_after
from bayesmeta.diagnostics.predictive import Predictive, epistemic_score, predict
from bayesmeta.inference.predictive import per_datum
from bayesmeta.models.network_model import inductive
from bayesmeta.models.task_model import TaskModel
from bayesmeta.train import derived_seed, seeded
from bayesmeta.types import Algorithm, Context, Inference, Split, SupervisedFamily, TaskFamily


@torch.no_grad()
def held_out(
    family: TaskFamily,
    inference: Inference,
    *,
    shots: int = 10,
    queries: int = 20,
    tasks: int = 300,
    split: Split = "test",
    model: TaskModel | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Predictive:
    """The predictive of ``queries`` fresh data of each of ``tasks`` tasks, from the belief after ``shots`` other data.

    ``model`` is the task model whose latent the procedure infers, by default the family's own. The data follow from
    ``seed`` and ``split``, whatever the procedure. Raises ValueError for a control family or one without a model.
    """
    context, query = _data(family, shots, queries, tasks, split, seed)
    return _predict_after(inference, context, _model(family, model), query, draws, seed)


@torch.no_grad()
def prediction_scores(
    algorithm: Algorithm,
    family: SupervisedFamily,
    params: Float[Tensor, "B M"],
    *,
    shots: Sequence[int],
    queries: int = 20,
    draws: int = 200,
    seed: int = 0,
) -> dict[str, Float[Tensor, "B K"]]:
    """How each task's ``queries`` data are predicted after each number of ``shots``; none is in both.

    ``log_density`` in nats per datum; of classes ``accuracy`` and ``confidence``, the probability of the class that is
    chosen; of numbers ``squared_error`` of the predictive mean, ``coverage_95`` of the central intervals, and
    ``squared_error_of_function`` where the family tells its functions without noise. Everything random follows from
    ``seed``.
    """
    data = family.context(params, max(shots) + queries, torch.Generator(params.device).manual_seed(seed))
    query = data.rows(max(shots), data.size)
    mean = family.mean(params, query.x) if isinstance(family, KnowsFunction) else None
    found: dict[str, list[Tensor]] = {}
    for count in shots:
        predictive = _predict_after(
            algorithm.inference, data.rows(0, count), algorithm.inference.model, query, draws, seed
        )
        scored = {"log_density": predictive.log_density}
        if predictive.classes is not None:
            probabilities, labels = predictive.classes.probabilities, predictive.classes.labels
            scored["accuracy"] = (probabilities.argmax(-1) == labels).double().mean(-1)
            scored["confidence"] = probabilities.amax(-1).mean(-1)
        else:
            scored["squared_error"] = (predictive.mean - query.y).square().sum(-1)
            if mean is not None:
                scored["squared_error_of_function"] = (predictive.mean - mean).square().sum(-1)
            scored["coverage_95"] = ((predictive.pit - 0.5).abs() <= 0.475).double().mean(-1)
        for name, values in scored.items():
            found.setdefault(name, []).append(per_datum(values, query).cpu())
    return {name: torch.stack(values, 1) for name, values in found.items()}


@torch.no_grad()
def ood_auroc(
    family: TaskFamily,
    inference: Inference,
    *,
    shots: int = 10,
    queries: int = 20,
    tasks: int = 300,
    model: TaskModel | None = None,
    draws: int = 200,
    seed: int = 0,
) -> dict[str, scores.Auroc]:
    """How well the belief tells ``ood`` tasks from ``test`` tasks, with 95 % intervals over independent tasks.

    ``epistemic``: the mean over a task's queries of the epistemic variance or, of classes, the mutual information,
    summed over coordinates. It can be blind by the model's structure, which is no fault of the inference: in a
    linear-Gaussian model the posterior covariance does not depend on the targets at all, so that with inputs of one law
    its area is exactly 1/2. The other two ask how surprising the task's data are, as the mean of ``-log p`` per datum:
    ``context_surprise`` of the second half of the context under the belief from the first, which needs no labels beyond
    the context, and ``query_surprise`` of the queries' targets under the belief from the whole context.

    An area below 1/2 is as telling: ``ood`` tasks may be easier to predict, or to learn, than those of training. Other
    arguments and errors as in :func:`held_out`; also ValueError for ``shots < 1``.
    """
    if shots < 1:
        raise ValueError(f"ood_auroc: expected at least 1 shot, whose surprise is a score, got {shots}")
    model = _model(family, model)
    splits: tuple[Split, ...] = ("test", "ood")
    found = []
    for split in splits:
        context, query = _data(family, shots, queries, tasks, split, seed)
        first, second = context.rows(0, shots // 2), context.rows(shots // 2, shots)
        queried = _predict_after(inference, context, model, query, draws, derived_seed(seed, split))
        continued = _predict_after(inference, first, model, second, draws, derived_seed(seed, split))
        found.append(
            {
                "epistemic": _per_task(queried, epistemic_score(queried)),
                "context_surprise": _per_task(continued, -continued.log_density),
                "query_surprise": _per_task(queried, -queried.log_density),
            }
        )
    return {name: scores.auroc(found[0][name], found[1][name]) for name in found[0]}


def _per_task(predictive: Predictive, values: Float[Tensor, "B N"]) -> Float[np.ndarray, "B"]:
    return (torch.where(predictive.mask, values, 0.0).double().sum(1) / predictive.mask.sum(1)).cpu().numpy()


def _data(family: TaskFamily, shots: int, queries: int, tasks: int, split: Split, seed: int) -> tuple[Context, Context]:
    """Context and queries of sampled tasks."""
    if not isinstance(family, SupervisedFamily):
        raise ValueError(
            f"expected a supervised family, got {family.spec.name}, whose tasks are played; collect transitions and "
            f"give `predict` some of their context() as queries"
        )
    generator = torch.Generator().manual_seed(derived_seed(seed, f"{split} tasks, held out"))
    params = family.sample(tasks, split, generator)
    data = family.context(params, shots + queries, generator)  # of one draw, so that no datum is in both
    return data.rows(0, shots), data.rows(shots, data.size)


@runtime_checkable
class KnowsFunction(Protocol):
    """A family of noisy functions that tells them without noise."""

    def mean(self, params: Float[Tensor, "B M"], x: Float[Tensor, "B N X"]) -> Float[Tensor, "B N Y"]: ...


@runtime_checkable
class KnowsModel(Protocol):
    """A family that ships the generative model of its tasks, or None where an option leaves none."""

    @property
    def model(self) -> TaskModel | None: ...


def _model(family: TaskFamily, model: TaskModel | None) -> TaskModel:
    if model is None and isinstance(family, KnowsModel):
        model = family.model
    if model is not None:
        return model
    raise ValueError(f"{family.spec.name} has no model of its own; give model=, whose latent the procedure infers")


def _predict_after(
    inference: Inference, context: Context, model: TaskModel, query: Context, draws: int, seed: int
) -> Predictive:
    with seeded(seed):  # a procedure may draw numbers, too
        posterior = posterior_after(inference, context)
    seed = derived_seed(seed, "predictive draws")
    return predict(posterior, inductive(model, context), query, draws=draws, seed=seed)
