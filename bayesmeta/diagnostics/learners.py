"""Results of supervised meta-learners: the belief about a task's function, and what it predicts of unseen data."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from bayesmeta.diagnostics.calibration import calibration, ranks
from bayesmeta.diagnostics.decoding import decode, decoded_ranks, exact_curve
from bayesmeta.diagnostics.export import MAX_NUMBERS, context_sizes, inference_kind, results_from, tasks_at_once
from bayesmeta.diagnostics.functional import (
    FunctionValues,
    misfit,
    probes_per_task,
    shared_probes,
    true_values,
    value_names,
)
from bayesmeta.diagnostics.held_out import KnowsModel, ood_auroc
from bayesmeta.diagnostics.implied import implied_table
from bayesmeta.diagnostics.latent import is_point
from bayesmeta.diagnostics.results import array
from bayesmeta.diagnostics.scores import Auroc
from bayesmeta.diagnostics.truth import exact_posterior
from bayesmeta.diagnostics.unseen import ELEMENTS, ood_group, predicted_after, predictive_group
from bayesmeta.episodic import Learner
from bayesmeta.inference.gradient import GradientDescent
from bayesmeta.inference.mcmc import ReferenceRejected
from bayesmeta.train import derived_seed, seeded
from bayesmeta.types import Context, Spec, SupervisedFamily, to

QUERIES = 20  # per task, more only where that is no multiple of the classes
_IMPLIED_TASKS = 20
_IMPLIED_NUMBERS = 1 << 20  # weights of all these tasks, of which some forty products with the Hessian are kept
_OOD_SHOTS = 10


def learner_results(
    learner: Learner,
    family: SupervisedFamily,
    *,
    tasks: int = 100,
    shots: int = 20,
    draws: int = 200,
    seed: int = 0,
    device: torch.device | str = "cpu",
    attrs: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """The results of a meta-learner's beliefs on fresh test tasks of a family, after up to ``shots`` data.

    The latent is the function's values at inputs that all tasks share
    (:class:`~bayesmeta.diagnostics.functional.FunctionValues`); of images, which every task labels as it likes, at some
    of its own queries. True values and the exact procedure's belief about them are
    compared with wherever the family has them, and parameters are decoded. A belief of fewer than ``draws`` particles
    has as many draws. With classes all numbers of data are multiples of that of the classes.

    ``predictive`` are queries of the same tasks after all data, ``ood`` is there if the family has such a split. Where
    adaptation is gradient descent, the attribute ``implied_prior`` says which prior it stands for.
    """
    spec, inference, model = family.spec, learner.inference, learner.inference.model
    ways = spec.y_dim if spec.classes else 1
    sizes = [ways * size for size in context_sizes(max(1, shots // ways))]
    generator = torch.Generator().manual_seed(derived_seed(seed, "diagnostics tasks"))
    params = family.sample(tasks, "test", generator)
    data = family.context(params, sizes[-1] + ways * -(-QUERIES // ways), generator)
    context, query = data.rows(0, sizes[-1]), shuffled(data.rows(sizes[-1], data.size), generator)
    context, query, at_once = to(context, device), to(query, device), tasks_at_once(context, spec)

    shared, truth = not spec.x_shape, None
    if shared:
        probes = shared_probes(family, data.size, torch.Generator().manual_seed(derived_seed(seed, "probes")))
        truth = true_values(family, params, probes)
        truth = None if truth is None else truth.to(device)
    else:
        probes = query.x[:, : probes_per_task(spec)]
    probes, own = probes.to(device), derived_seed(seed, "diagnostics draws")
    functions = FunctionValues(inference, model, probes, spec.y_dim, draws, own)
    tree = _compared(
        context,
        params,
        functions,
        spec,
        reference=_exact_values(family, functions) if shared else None,
        sizes=sizes,
        draws=_draws(functions, context, draws),
        seed=own,
        truth=truth,
        attrs={
            "inference": type(inference).__name__,
            "inference_kind": inference_kind(inference),
            "latent": "function values",
            **(attrs or {}),
        },
    )
    _note_latent(tree, value_names(probes, spec), probes, truth)
    _note_calibration(tree, context, truth, probes, classes=spec.classes, seed=seed)
    if shared and (exact := exact_posterior(family)) is not None:
        tree["exact"] = xr.DataTree(exact_curve(exact, to(context, "cpu"), tree))
    predicted = predicted_after(
        inference, model, context, query, spec, draws=draws, seed=derived_seed(seed, "diagnostics predictions")
    )
    tree["predictive"] = xr.DataTree(predictive_group(predicted, tree["posterior"]["task"].to_numpy(), seed))
    if _has_ood(family):
        tree["ood"] = xr.DataTree(ood_group(_areas(learner, family, tree, tasks, draws, seed)))
    if isinstance(inference, GradientDescent):
        few = max(2, min(_IMPLIED_TASKS, _IMPLIED_NUMBERS // inference.init(1).z.shape[1], at_once))
        tree.attrs["implied_prior"] = implied_table(inference, _first(context, few))
    return tree


def shuffled(data: Context, generator: torch.Generator) -> Context:
    """The rows of each task in random order.

    Where classes take turns, as in few-shot tasks, no row could stand for a random datum of its task otherwise.
    """
    order = torch.rand(data.mask.shape, generator=generator).argsort(1)
    rows = order.unsqueeze(-1)
    return Context(data.x.take_along_dim(rows, 1), data.y.take_along_dim(rows, 1), data.mask.gather(1, order))


def _exact_values(family: SupervisedFamily, functions: FunctionValues) -> FunctionValues | None:
    """The exact belief about the same values, if the family has one; with draws of its own."""
    model = family.model if isinstance(family, KnowsModel) else None
    exact = exact_posterior(family)
    if model is None or exact is None:
        return None
    device = functions.probes.device
    if isinstance(exact, nn.Module):
        exact = copy.deepcopy(exact).to(device)
    model = copy.deepcopy(model).to(device)
    own = derived_seed(functions.seed, "reference")
    return FunctionValues(exact, model, functions.probes, functions.y_dim, functions.draws, own)


def _compared(
    context: Context, params: Float[Tensor, "B M"], functions: FunctionValues, spec: Spec, **options: Any
) -> xr.DataTree:
    """The results, without the reference if that is none."""
    try:
        return results_from(context, params, functions, spec, **options)
    except ReferenceRejected as refused:
        attrs = {**options.pop("attrs"), "reference_rejected": str(refused)}
        return results_from(context, params, functions, spec, **{**options, "reference": None}, attrs=attrs)


def _draws(functions: FunctionValues, context: Context, most: int) -> int:
    """How many draws the belief has to give: as many as its particles, and of a point any number."""
    one = functions.of_tasks(slice(0, 1))
    count = one.update(one.init(1), _first(context, 1)).values.shape[1]
    return most if count == 1 else min(most, count)


def _first(context: Context, tasks: int) -> Context:
    return Context(context.x[:tasks], context.y[:tasks], context.mask[:tasks])


def _note_latent(tree: xr.DataTree, names: list[str], probes: Tensor, truth: Float[Tensor, "B V"] | None) -> None:
    """What the dimensions of the latent are, into ``constant_data``."""
    dims = ("probe", "x_dim") if probes.ndim == 2 else ("task", "probe", "x_dim")
    found: dict[str, Any] = {"latent_name": ("latent_dim", names)}
    if probes.numel() <= MAX_NUMBERS:
        found["probes"] = (dims, probes.cpu().numpy())
    if truth is not None:
        found["latent_truth"] = (("task", "latent_dim"), truth.cpu().numpy())
    latent_dim = tree["posterior"]["latent_dim"].to_numpy()
    group = tree["constant_data"].to_dataset().assign(found).assign_coords(latent_dim=latent_dim)
    tree["constant_data"] = xr.DataTree(group)


def _note_calibration(
    tree: xr.DataTree, context: Context, truth: Float[Tensor, "B V"] | None, probes: Tensor, *, classes: bool, seed: int
) -> None:
    """Decoded parameters, and the ranks of true values, or of the parameters where values have no truth."""
    if probes.ndim == 3:
        return
    tree["decoded"] = xr.DataTree(decode(tree))
    own = derived_seed(seed, "diagnostics ranks")
    group: xr.Dataset | None
    if truth is not None:
        quantities = {"misfit": misfit(probes, classes=classes)}
        with seeded(own):
            group = ranks(tree, context, truth, quantities=quantities, seed=own)
    elif is_point(tree) or (group := decoded_ranks(tree, own)) is None:
        return
    tree["prior_sbc"], tree["calibration"] = xr.DataTree(group), xr.DataTree(calibration(group))


def _areas(
    learner: Learner, family: SupervisedFamily, tree: xr.DataTree, tasks: int, draws: int, seed: int
) -> dict[str, Auroc]:
    """How well the belief tells tasks of the ``ood`` split, with no more draws than fit into memory."""
    spec, inference = family.spec, copy.deepcopy(learner.inference).cpu()
    size = tasks * inference.init(1).posterior.event_shape.numel()
    shots = min(_OOD_SHOTS, int(array(tree, "posterior", "context_step")[-1]))
    return ood_auroc(
        family,
        inference,
        shots=max(shots, spec.y_dim) if spec.classes else shots,
        tasks=tasks,
        model=inference.model,
        draws=1 if is_point(tree) else max(10, min(draws, ELEMENTS // size)),
        seed=seed,
    )


def _has_ood(family: SupervisedFamily) -> bool:
    try:
        family.sample(1, "ood", torch.Generator().manual_seed(0))
    except ValueError:
        return False
    return True
