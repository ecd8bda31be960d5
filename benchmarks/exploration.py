"""Trained explorers in a world, beside what is known exactly: one table, one protocol.

Each trial is an episode of exploration, whose return does not count, and one of execution, on problems of a split. The
rows that are no run: who knows the problem (by planning), who does without knowing it, and exact Thompson sampling,
which draws a problem from its exact posterior and acts optimally for it, anew when contradicted or once per episode.

    python -m benchmarks.exploration runs/map_5/*        # run folders METHOD-SEED of one world

``return`` of execution with its 95 % interval over trials, ``steps`` and exactly recovered ``nats`` of exploration; of
DREAM the nats that its belief holds of the problem, by enumeration of the training problems after exploring one of
them, and ``told``, the return of its execution where that is conditioned on the code of one who is told the task.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bayesmeta.algorithms.dream import DREAM
from bayesmeta.collect import collect
from bayesmeta.diagnostics.exploration import explored, problem_log_weights
from bayesmeta.rl.thompson import Thompson
from bayesmeta.runs import load_run
from bayesmeta.tasks.world import World
from bayesmeta.train import seeded

TRIALS = 2000


def main(argv: Sequence[str] | None = None) -> None:
    folders = [Path(name) for name in (sys.argv[1:] if argv is None else argv)]
    runs = {folder.name: load_run(folder, "last") for folder in folders}
    family = next(iter(runs.values())).family
    assert isinstance(family, World)
    row("method", "return", "steps", "nats", "belief's nats", "told")
    row(*("---" for _ in range(6)))
    references(family)
    for name, run in runs.items():
        if isinstance(run.algorithm, DREAM):
            dream(name, run.algorithm, family)
        else:
            found = explored(run.algorithm, family, trials=TRIALS)  # type: ignore[arg-type]
            row(name, interval(found.returns), interval(found.steps), interval(found.nats[:, -1]), "", "")


def references(family: World) -> None:
    """What is known exactly."""
    generator = torch.Generator().manual_seed(0)
    params = family.sample(TRIALS, "test", generator)
    for name, returns in family.reference_returns(family.identifiers("test")).items():
        row(name, f"{returns.mean():.3f}", "", "", "", "")
    sampling = Thompson(family, family.identifiers("test"))
    for resample in ("contradicted", "episode"):
        trial = sampling.trial(params, resample=resample, generator=generator)
        row(f"Thompson, {resample}", interval(trial.returns), "", "", "", "")


def dream(name: str, algorithm: DREAM, family: World) -> None:
    """A run of DREAM: its trials on test problems, and what its belief holds of a training problem."""
    found = explored(algorithm, family, trials=TRIALS)
    problems = family.identifiers("train")
    training = explored(algorithm, family, "train", trials=TRIALS)
    with torch.no_grad(), seeded(0):
        code, start = algorithm.told(problems), algorithm.inference.init(TRIALS)
        belief = algorithm.inference.update(start, training.explore.context(next_obs=True)).posterior
        log_weights = problem_log_weights(code, belief)
        env = family.env(found.params)
        told = collect(env, algorithm.informed(found.params), algorithm.inference, family.spec, episodes=2, seed=0)
    true = (problems == training.params.unsqueeze(1)).all(-1)
    nats = log_weights[true] + math.log(len(problems))
    cells = (interval(found.returns), interval(found.steps), interval(found.nats[:, -1]))
    row(name, *cells, interval(nats), interval(told.returns[:, 1]))


def interval(values: Tensor) -> str:
    return f"{values.mean():.3f} ± {1.96 * values.std() / len(values) ** 0.5:.3f}"


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
