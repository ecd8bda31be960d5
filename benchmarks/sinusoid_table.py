"""Few-shot sinusoids: how far is every method from the best that any could do?

Loads the agents of run folders, which ``bayesmeta train experiment=sinusoid_METHOD seed=S`` made, adapts each to the
same 600 unseen tasks with 5, 10 and 20 data, and predicts 50 others of each. A folder's name without its trailing
``-S`` is the method's; the seeds of one method become one row. Procedures that descend are also stopped after 0, 1, 5
and 10 steps.

    python -m benchmarks.sinusoid_table runs/sinusoid_*/*

Columns: the squared error to the function without noise, mean and 95 % interval over tasks (averaged over seeds), and
its gap to the Bayes-optimal predictive, which knows prior and noise and has the posterior on a grid; the negative
log-likelihood of noisy queries in nats; the coverage of central 95 % intervals; the deviation of the PIT values from
uniform (root mean square over levels); the standard deviation that more data would remove.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bayesmeta.diagnostics import scores
from bayesmeta.diagnostics.export import posterior_after
from bayesmeta.diagnostics.predictive import Predictive, predict
from bayesmeta.inference.gradient import GradientDescent
from bayesmeta.models.task_model import TaskModel
from bayesmeta.runs import load_run
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.train import derived_seed, seeded
from bayesmeta.types import Context, Inference

TASKS, QUERIES, DRAWS = 600, 50, 200
SHOTS = (5, 10, 20)
STEPS = (0, 1, 5, 10)
HEADER = ("method", "data", "squared error", "gap to Bayes", "NLL", "95 % coverage", "PIT deviation", "epistemic sd")


def main(argv: Sequence[str] | None = None) -> None:
    folders = [Path(name) for name in (sys.argv[1:] if argv is None else argv)]
    by_method: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        by_method[folder.name.rpartition("-")[0]].append(folder)
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    for noise in (0.3,):
        table(Sinusoid(noise=noise), by_method)


def table(family: Sinusoid, by_method: dict[str, list[Path]]) -> None:
    """One row for each method, number of data and number of steps."""
    for shots in SHOTS:
        data, mean = drawn(family, shots)
        bayes = measured([(family.exact, family.model)], data, mean, shots)
        show("predict zero", shots, {"error": mean.square().mean((1, 2)).numpy()}, None)
        show("Bayes optimal", shots, bayes, None)
        for method, folders in by_method.items():
            for label, procedures in variants(method, folders):
                show(label, shots, measured(procedures, data, mean, shots), bayes["error"])


def drawn(family: Sinusoid, shots: int) -> tuple[Context, torch.Tensor]:
    """Data and queries of the tasks, and the noise-free functions at the queries."""
    generator = torch.Generator().manual_seed(derived_seed(0, "sinusoid table"))
    params = family.sample(TASKS, "test", generator)
    data = family.context(params, max(SHOTS) + QUERIES, generator)
    return data, family.mean(params, data.x[:, max(SHOTS) :])


def variants(method: str, folders: list[Path]) -> Iterator[tuple[str, list[tuple[Inference, TaskModel]]]]:
    """A method as it was trained and, where it descends, stopped earlier and later."""
    procedures = [load_run(folder, "last").algorithm.inference for folder in folders]
    yield method, [(inference, inference.model) for inference in procedures]
    for steps in STEPS:
        if all(isinstance(inference, GradientDescent) for inference in procedures):
            yield f"{method}, {steps} steps", [(inference.at(steps), inference.model) for inference in procedures]


@torch.no_grad()
def measured(
    procedures: list[tuple[Inference, TaskModel]], data: Context, mean: torch.Tensor, shots: int
) -> dict[str, np.ndarray]:
    """Scores of each task, averaged over the procedures."""
    query = data.rows(max(SHOTS), data.size)
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for inference, model in procedures:
        with seeded(0):
            posterior = posterior_after(inference, data.rows(0, shots))
        parts = [predicted(posterior, model, query, seed) for seed in (0,)]
        for predictive in parts:
            found["error"].append((predictive.mean - mean).square().mean((1, 2)).numpy())
            found["nll"].append(-predictive.log_density.mean(1).numpy())
            pit = predictive.pit.numpy()
            found["coverage"].append((np.abs(pit - 0.5) <= 0.475).mean((1, 2)))
            found["pit"].append(np.full(len(pit), scores.rmsce(pit.reshape(-1))))
            found["spread"].append(predictive.epistemic.sqrt().mean((1, 2)).numpy())
    return {name: np.mean(values, 0) for name, values in found.items()}


def predicted(posterior: Any, model: TaskModel, query: Context, seed: int) -> Predictive:
    return predict(posterior, model, query, draws=DRAWS, seed=seed)


def show(label: str, shots: int, found: dict[str, np.ndarray], bayes: np.ndarray | None) -> None:
    error = found["error"]
    half = 1.96 * error.std(ddof=1) / np.sqrt(len(error))
    cells = [label, str(shots), f"{error.mean():.3f} ± {half:.3f}", "" if bayes is None else gap(error - bayes)]
    for name, digits in (("nll", 3), ("coverage", 3), ("pit", 3), ("spread", 3)):
        cells.append(f"{found[name].mean():.{digits}f}" if name in found else "")
    print("| " + " | ".join(cells) + " |", flush=True)


def gap(difference: np.ndarray) -> str:
    half = 1.96 * difference.std(ddof=1) / np.sqrt(len(difference))
    return f"{difference.mean():.3f} ± {half:.3f}"


if __name__ == "__main__":
    main()
