"""What supervised meta-learners predict, against the best that any could: four tables.

Each loads the agents of run folders, which ``bayesmeta train experiment=PROBLEM_METHOD seed=S run_dir=...`` made. A
folder's name without its trailing ``-S`` is the method's; the seeds of one method become one row.

    python -m benchmarks.few_shot sinusoid runs/sinusoid/*   # 600 tasks, 5, 10 and 20 data, 0, 1, 5 and 10 steps
    python -m benchmarks.few_shot shift runs/sinusoid/*      # tasks and numbers of data unlike those of training
    python -m benchmarks.few_shot pacoh runs/pacoh/*         # 20 training tasks of 5 data: 200 tasks, 200 queries
    python -m benchmarks.few_shot digits runs/digits/*       # 5 ways, 1 and 5 shots, with and without transduction

``squared error`` is that of the predictive mean to the function without noise, with its 95 % interval over tasks
(averaged over seeds), and ``gap`` its distance from the Bayes-optimal predictive's, which knows prior and noise;
``NLL`` of noisy queries in nats; ``coverage`` of central 95 % intervals; ``PIT deviation`` from uniform, root mean
square over levels; ``epistemic sd``, what more data would remove.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesmeta.diagnostics import scores
from bayesmeta.diagnostics.predictive import Predictive
from bayesmeta.diagnostics.unseen import predicted_after
from bayesmeta.models.task_model import TaskModel
from bayesmeta.runs import load_run
from bayesmeta.tasks.digits import Digits
from bayesmeta.tasks.pacoh_sinusoid import PacohSinusoid
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.train import derived_seed
from bayesmeta.types import Context, Inference, Spec

Procedure = tuple[Inference, TaskModel]
Scores = dict[str, np.ndarray]  # of each task
STEPS = (0, 1, 5, 10)
NUMBERS = ("squared error", "gap to Bayes", "NLL", "95 % coverage", "PIT deviation", "epistemic sd")


def main(argv: Sequence[str] | None = None) -> None:
    problem, *names = sys.argv[1:] if argv is None else argv
    by_method: dict[str, list[Procedure]] = {}
    for folder in map(Path, names):
        inference = load_run(folder, "last").algorithm.inference
        by_method.setdefault(folder.name.rpartition("-")[0], []).append((inference, inference.model))
    PROBLEMS[problem](by_method)


def sinusoid(by_method: dict[str, list[Procedure]], tasks: int = 600, queries: int = 50) -> None:
    """Error, calibration and contraction with the number of data and of steps."""
    family = Sinusoid()
    params, data = drawn(family, tasks, 20 + queries)
    header("method", "data", *NUMBERS)
    for shots in (5, 10, 20):
        support, query = data.rows(0, shots), data.rows(20, 20 + queries)
        mean = family.mean(params, query.x)
        zero = mean.square().mean((1, 2)).numpy()
        best = measured([(family.exact, family.model)], support, query, mean, family.spec)
        row("predict zero", str(shots), interval(zero))
        row("Bayes optimal", str(shots), *numbers(best, None))
        for method, procedures in by_method.items():
            for label, some in with_steps(method, procedures):
                row(label, str(shots), *numbers(measured(some, support, query, mean, family.spec), best))


def shift(by_method: dict[str, list[Procedure]], tasks: int = 300, queries: int = 50) -> None:
    """Does a method know that it does not know? Ten data of tasks further and further away, and more data than ever."""
    family = Sinusoid()
    params, _ = drawn(family, tasks, 1)
    shifted = {
        "as in training": (params, 10),
        "amplitude 5 to 6": (torch.stack([5 + params[:, 0] / 5, params[:, 1]], 1), 10),
        "amplitude 8 to 12": (torch.stack([8 + 0.8 * params[:, 0], params[:, 1]], 1), 10),
        "phase 1 to 1.25 pi": (torch.stack([params[:, 0], torch.pi + params[:, 1] / 4], 1), 10),
        "phase 1.5 to 2 pi": (torch.stack([params[:, 0], 1.5 * torch.pi + params[:, 1] / 2], 1), 10),
        "1 datum": (params, 1),
        "40 data": (params, 40),
    }
    header("method", "tasks", "squared error", "NLL", "95 % coverage", "epistemic sd")
    for label, (tasks_here, shots) in shifted.items():
        data = family.context(tasks_here, shots + queries, torch.Generator().manual_seed(1))
        support, query = data.rows(0, shots), data.rows(shots, shots + queries)
        mean = family.mean(tasks_here, query.x)
        for method, procedures in by_method.items():
            found = measured(procedures, support, query, mean, family.spec)
            cells = numbers(found, None)
            row(method, label, *(cells if len(cells) == 1 else (cells[i] for i in (0, 2, 3, 5))))


def pacoh(by_method: dict[str, list[Procedure]], tasks: int = 200, queries: int = 200) -> None:
    """Twenty training tasks of five data each: who overfits them? Error of noisy queries, as published."""
    family, fresh = PacohSinusoid(), PacohSinusoid(train_tasks=None)
    header("method", "tasks", "RMSE", "calibration error", "NLL", "95 % coverage")
    for split in ("train", "test"):
        params, data = drawn(fresh, tasks, 5 + queries)
        support, query = data.rows(0, 5), data.rows(5, 5 + queries)
        if split == "train":  # the training tasks with the very data that were trained on, and fresh queries
            params = family.sample(tasks, "train", torch.Generator().manual_seed(0))
            support = family.context(params, 5, torch.Generator().manual_seed(0))
            query = fresh.context(params, queries, torch.Generator().manual_seed(1))
        everyone = dict(by_method)
        if split == "test":
            everyone["Bayes optimal"] = [(family.exact, family.model)]
        for method, procedures in everyone.items():
            found = measured(procedures, support, query, query.y, family.spec)
            row(
                method,
                split,
                interval(np.sqrt(found["error"])),
                *(f"{found[name].mean():.3f}" for name in ("levels", "nll", "coverage")),
            )


def digits(by_method: dict[str, list[Procedure]], tasks: int = 300, queries: int = 50) -> None:
    """Classes of digits and poses that were not in training; a predicted class is that of the mean probabilities."""
    family = Digits()
    header("method", "shots", "queries", "accuracy", "ECE", "NLL")
    for shots in (1, 5):
        _, data = drawn(family, tasks, 5 * shots + queries)
        support, query = data.rows(0, 5 * shots), data.rows(5 * shots, data.size)
        for method, procedures in by_method.items():
            for transductive in (False, True):
                found = classified(procedures, support, query, family.spec, transductive)
                cells = [interval(found["accuracy"]), *(f"{found[name].mean():.3f}" for name in ("ece", "nll"))]
                if found["lost"].any():
                    cells = [f"diverges in {100 * found['lost'].mean():.1f} % of tasks"]
                row(method, str(shots), "together" if transductive else "one by one", *cells)


PROBLEMS: dict[str, Callable[[dict[str, list[Procedure]]], None]] = {
    "sinusoid": sinusoid,
    "shift": shift,
    "pacoh": pacoh,
    "digits": digits,
}


def drawn(family: Sinusoid | PacohSinusoid | Digits, tasks: int, rows: int) -> tuple[Tensor, Context]:
    """Unseen tasks, the same for everyone, and data of each."""
    generator = torch.Generator().manual_seed(derived_seed(0, "few shot"))
    params = family.sample(tasks, "test", generator)
    return params, family.context(params, rows, generator)


def with_steps(method: str, procedures: list[Procedure]) -> Iterator[tuple[str, list[Procedure]]]:
    """A method as it was trained and, where it descends, stopped earlier and later."""
    yield method, procedures
    descents = [part for inference, _ in procedures if (part := descent(inference)) is not None]
    trained = [part.steps for part in descents]
    for steps in STEPS if descents else ():
        for part in descents:
            part.steps = steps
        yield f"{method}, {steps} steps", procedures
    for part, number in zip(descents, trained, strict=True):
        part.steps = number


def descent(inference: Any) -> Any:
    """The part of a procedure that takes ``steps``, or None."""
    return next((part for part in inference.modules() if isinstance(getattr(part, "steps", None), int)), None)


def predictions(
    procedures: list[Procedure], support: Context, query: Context, spec: Spec, transductive: bool = False
) -> Iterator[Predictive]:
    for inference, model in procedures:
        yield predicted_after(inference, model, support, query, spec, transductive=transductive)


def measured(procedures: list[Procedure], support: Context, query: Context, mean: Tensor, spec: Spec) -> Scores:
    """Scores of numbers, averaged over the procedures. ``lost``: no finite prediction, or one that is 1,000 off."""
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for predictive in predictions(procedures, support, query, spec):
        pit, density = predictive.pit.numpy(), predictive.log_density.mean(1).numpy()
        error = (predictive.mean - mean).square().mean((1, 2)).numpy()
        lost = ~np.isfinite(density) | ~np.isfinite(pit).all((1, 2)) | ~(error < 1e6)
        pit = np.where(lost[:, None, None], 0.5, pit)
        found["lost"].append(lost)
        found["error"].append(error)
        found["nll"].append(-density)
        found["coverage"].append((np.abs(pit - 0.5) <= 0.475).mean((1, 2)))
        found["pit"].append(np.full(len(pit), scores.rmsce(pit.reshape(-1))))
        found["sd"].append(predictive.epistemic.sqrt().mean((1, 2)).numpy())
        found["levels"].append(np.array([calibration_error(values) for values in pit]))
    return {name: np.mean(values, 0) for name, values in found.items()}


def calibration_error(pit: np.ndarray) -> float:
    """As published for PACOH: root mean square over 20 levels of ``P(cdf <= p) - p``, of one task."""
    levels = np.linspace(0.05, 0.95, 20)
    return float(np.sqrt(np.mean(((pit.reshape(-1, 1) <= levels).mean(0) - levels) ** 2)))


def classified(procedures: list[Procedure], support: Context, query: Context, spec: Spec, transductive: bool) -> Scores:
    """Scores of classes, averaged over the procedures. ``lost``: no finite prediction."""
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for predictive in predictions(procedures, support, query, spec, transductive):
        assert predictive.classes is not None
        p, label = predictive.classes.probabilities[:, :, 0].numpy(), predictive.classes.labels[:, :, 0].numpy()
        found["lost"].append(~np.isfinite(p).all((1, 2)))
        p = np.nan_to_num(p)
        found["accuracy"].append((p.argmax(-1) == label).mean(1))
        found["nll"].append(-predictive.log_density.mean(1).numpy())
        error = scores.ece(scores.reliability(p.reshape(-1, p.shape[-1]), label.reshape(-1), by="width"))
        found["ece"].append(np.full(len(p), error))
    return {name: np.mean(values, 0) for name, values in found.items()}


def numbers(found: Scores, best: Scores | None) -> list[str]:
    if found["lost"].any():
        return [f"diverges in {100 * found['lost'].mean():.1f} % of tasks"]
    gap = "" if best is None else interval(found["error"] - best["error"])
    return [interval(found["error"]), gap, *(f"{found[k].mean():.3f}" for k in ("nll", "coverage", "pit", "sd"))]


def interval(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {1.96 * values.std(ddof=1) / np.sqrt(len(values)):.3f}"


def header(*names: str) -> None:
    row(*names)
    row(*("---" for _ in names))


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
