"""Is this procedure's posterior right? One call for any inference procedure, a user's guide or model included."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import xarray as xr
from tqdm import tqdm

from bayesmeta.diagnostics.calibration import Quantity, calibration, ranks
from bayesmeta.diagnostics.export import results_from
from bayesmeta.diagnostics.held_out import KnowsModel, ood_auroc
from bayesmeta.diagnostics.predictive import predict
from bayesmeta.diagnostics.report import write_report
from bayesmeta.diagnostics.results import array, save
from bayesmeta.diagnostics.truth import KnowsPosterior
from bayesmeta.diagnostics.unseen import ood_group, predictive_group
from bayesmeta.diagnostics.verdict import Verdict, passed, table, verdicts
from bayesmeta.inference.guides import FromGuide
from bayesmeta.inference.mcmc import ReferenceRejected
from bayesmeta.models.task_model import TaskModel
from bayesmeta.tasks.model_family import ModelFamily
from bayesmeta.train import derived_seed, seeded
from bayesmeta.types import Context, Inference, SupervisedFamily


@dataclass(frozen=True)
class Check:
    """What a check found: results that ArviZ opens, and verdicts. Printed, it is the table of verdicts."""

    tree: xr.DataTree
    verdicts: list[Verdict]

    @property
    def passed(self) -> bool:
        """Whether no gate failed."""
        return passed(self.verdicts)

    def save(self, folder: Path | str) -> tuple[Path, Path]:
        """Write ``results.nc`` and ``report.html`` into a folder, each whole or not at all, and return their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return save(self.tree, folder / "results.nc"), write_report(self.tree, folder / "report.html")

    def __str__(self) -> str:
        return table(self.verdicts)


@torch.no_grad()
def check(
    inference: Inference | Callable[[Context], Any],
    family: SupervisedFamily,
    *,
    model: TaskModel | None = None,
    reference: Inference | Literal["exact"] | None = "exact",
    quantities: Mapping[str, Quantity] | None = None,
    sizes: Sequence[int] = (1, 5, 10, 50),
    tasks: int = 300,
    draws: int = 199,
    queries: int = 20,
    seed: int = 0,
    progress: bool | None = None,
) -> Check:
    """Calibration, contraction, predictions and distance from the reference of a procedure on a family with a truth.

    ``inference`` is any procedure whose latent is the family's parameters, or a Pyro guide ``guide(data)`` of the
    family's model. ``family`` is any with ``sample``, ``context`` and a ``model``; for a model alone, wrap it in
    :class:`bayesmeta.tasks.model_family.ModelFamily`. ``tasks`` truths are drawn with data of each, the belief is taken
    after each of ``sizes`` data (and before any), and ``draws`` of each belief are ranked against the truth
    (:mod:`bayesmeta.diagnostics.calibration`), together with ``quantities`` of the user's own: functions of ``z`` and
    the data, by name. ``queries`` further data of each task are predicted; 0 leaves out
    everything about predictions, for procedures that take minutes to run. ``reference`` is the family's exact
    procedure, another one, or None; chains that are refused make the comparison invalid, not failed.

    Gates fail at a family-wise rate of 1e-3 where the belief is right. ``progress`` shows a bar, by default on a
    terminal. Everything follows from ``seed``; the global random state is left as it was. Raises ValueError where the
    family has no model or the latent is not its parameters.
    """
    if model is None and isinstance(family, KnowsModel):
        model = family.model
    if not isinstance(model, TaskModel):
        raise ValueError(
            f"check: expected a family with a TaskModel as its `model`, or one as model=..., got "
            f"{type(model).__name__}; without the density that made the data there is no truth to be right about"
        )
    spec = family.spec
    if not isinstance(inference, Inference):
        inference = FromGuide(model, inference, x_dim=spec.x_dim, y_dim=spec.y_dim)
    if reference == "exact":
        reference = family.exact if isinstance(family, KnowsPosterior) else None
    generator = torch.Generator().manual_seed(derived_seed(seed, "check"))
    params = family.sample(tasks, "test", generator)
    sizes = sorted({0, *sizes})
    context = family.context(params, sizes[-1], generator)
    event = inference.init(1).posterior.event_shape
    if tuple(event) != (spec.param_dim,):
        raise ValueError(
            f"check: expected a latent of dimension {spec.param_dim}, the parameters of {spec.name}, got "
            f"{list(event)}; a latent without a true value can only be checked through what is decoded from it: "
            f"bayesmeta.diagnostics.results_of"
        )
    with tqdm(total=4, disable=None if progress is None else not progress, leave=False) as bar:
        bar.set_description("beliefs")
        results = partial(
            results_from,
            context,
            params,
            inference,
            spec,
            sizes=sizes,
            draws=draws,
            seed=seed,
            model=model,
            truth=params,
        )
        try:
            tree = results(reference=reference)
        except ReferenceRejected as refused:
            tree = results(attrs={"reference_rejected": str(refused)})
        bar.update()
        bar.set_description("ranks")
        with seeded(derived_seed(seed, "ranks")):
            group = ranks(tree, context, params, model=model, quantities=quantities, seed=seed)
        tree["prior_sbc"], tree["calibration"] = xr.DataTree(group), xr.DataTree(calibration(group))
        bar.update()
        bar.set_description("predictions")
        began = time.perf_counter()
        belief = inference.update(inference.init(tasks), context)
        tree.attrs["seconds_per_task"] = (time.perf_counter() - began) / tasks
        if queries:
            query = family.context(params, queries, generator)
            predicted = predict(belief, model, query, draws=draws, seed=derived_seed(seed, "predictions"))
            tree["predictive"] = xr.DataTree(predictive_group(predicted, array(tree, "posterior", "task"), seed))
        bar.update()
        bar.set_description("unlike tasks")
        if queries and not isinstance(family, ModelFamily):
            few = min(10, sizes[-1])
            areas = ood_auroc(family, inference, shots=few, queries=queries, tasks=tasks, model=model, seed=seed)
            tree["ood"] = xr.DataTree(ood_group(areas))
        bar.update()
    return Check(tree, verdicts(tree))
