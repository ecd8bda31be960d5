"""Trained explorers in a world, beside what is known exactly: one table, one protocol.

Each trial is an episode of exploration, whose return does not count, and one of execution, on problems of a split. The
rows that are no run: who knows the problem (by planning), who does without knowing it, and exact Thompson sampling,
which draws a problem from its exact posterior and acts optimally for it, anew when contradicted or once per episode. No
method knows that a problem is one of the test split: exact posteriors begin with the problems of both.

    python -m benchmarks.exploration runs/map_5/*        # run folders METHOD-SEED of one world

``return`` of execution with its 95 % interval over trials, ``steps`` and exactly recovered ``nats`` of exploration; of
DREAM the nats that its belief holds of the problem, by enumeration of the training problems after exploring one of
them, and ``told``, the return of execution in training problems that is conditioned on the code of one who is told the
task (an identifier that was not in training has no code).
``idle rides``: how often an exploration boards a line that helps nobody, where there are such (``distracting_bus``).
There a second table says what the codes of the training problems hold of the permutation that matters and, given it, of
the one that does not: ``I(z; useful)`` and ``I(z; idle | useful)`` by enumeration. A good bottleneck leaves 0 of the
latter.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from bayesmeta.algorithms.dream import DREAM
from bayesmeta.collect import collect
from bayesmeta.diagnostics.exploration import Explored, explored, information_about, problem_log_weights
from bayesmeta.rl.thompson import Thompson
from bayesmeta.runs import load_run
from bayesmeta.tasks.bus import Bus
from bayesmeta.tasks.grid import RIDE
from bayesmeta.tasks.world import World
from bayesmeta.train import seeded

TRIALS = 2000


def main(argv: Sequence[str] | None = None) -> None:
    folders = [Path(name) for name in (sys.argv[1:] if argv is None else argv)]
    runs = {folder.name: load_run(folder, "last") for folder in folders}
    family = next(iter(runs.values())).family
    assert isinstance(family, World)
    row("method", "return", "steps", "nats", "idle rides", "belief's nats", "told")
    row(*("---" for _ in range(7)))
    references(family)
    for name, run in runs.items():
        if isinstance(run.algorithm, DREAM):
            dream(name, run.algorithm, family)
        else:
            found = explored(run.algorithm, family, trials=TRIALS)  # type: ignore[arg-type]
            row(name, *shown(found, family), "", "")
    codes = {name: run.algorithm for name, run in runs.items() if isinstance(run.algorithm, DREAM)}
    if codes and idle_cells(family):
        permutations(codes, family)


def references(family: World) -> None:
    """What is known exactly."""
    generator = torch.Generator().manual_seed(0)
    params = family.sample(TRIALS, "test", generator)
    for name, returns in family.reference_returns(family.identifiers("test")).items():
        row(name, f"{returns.mean():.3f}", "", "", "", "", "")
    sampling = Thompson(family, family.identifiers("all"))
    for resample in ("contradicted", "episode"):
        trial = sampling.trial(params, resample=resample, generator=generator)
        row(f"Thompson, {resample}", interval(trial.returns), "", "", "", "", "")


def dream(name: str, algorithm: DREAM, family: World) -> None:
    """A run of DREAM: its trials on test problems, what its belief holds of training problems, and being told those."""
    found = explored(algorithm, family, trials=TRIALS)
    problems = family.identifiers("train")
    training = explored(algorithm, family, "train", trials=TRIALS)
    with torch.no_grad(), seeded(0):
        code, start = algorithm.told(problems), algorithm.inference.init(TRIALS)
        belief = algorithm.inference.update(start, training.explore.context(next_obs=True)).posterior
        log_weights = problem_log_weights(code, belief)
        env, informed = family.env(training.params), algorithm.informed(training.params)
        told = collect(env, informed, algorithm.inference, family.spec, episodes=2, seed=0)
    true = (problems == training.params.unsqueeze(1)).all(-1)
    nats = log_weights[true] + math.log(len(problems))
    row(name, *shown(found, family), interval(nats), interval(told.returns[:, 1]))


def permutations(codes: dict[str, DREAM], family: World) -> None:
    """What codes hold of the lines that matter and, beside these, of the idle ones."""
    problems = family.identifiers("train")
    useful, each = (problems[:, 0] % 24).long(), torch.arange(len(problems))
    most = entropy(useful)
    print(f"\nThe codes of {len(problems)} training problems; {math.log(len(problems)):.2f} nats tell them apart:\n")
    row("method", f"nats about the useful lines, of {most:.2f}", "beside these about the idle lines", "KL to the prior")
    row(*("---" for _ in range(4)))
    for name, algorithm in codes.items():
        with torch.no_grad(), seeded(0):
            code = algorithm.told(problems)
            held = information_about(code, useful)
            rest = information_about(code, each) - held
            rate = kl_divergence(code, algorithm._prior(len(problems))).mean()
        row(name, *(f"{value:.3f}" for value in (held, rest)), f"{rate:.1f}")


def entropy(labels: Tensor) -> float:
    """Of the labels of equally likely problems, in nats."""
    return float(torch.special.entr(torch.bincount(labels) / len(labels)).sum())


def shown(found: Explored, family: World) -> tuple[str, ...]:
    """Return, steps, nats and idle rides of the trials of a method."""
    idle = idle_cells(family)
    cells = (interval(found.returns), interval(found.steps), interval(found.nats[:, -1]))
    if not idle:
        return *cells, ""
    here = (found.explore.obs[..., None, :2] == torch.tensor(idle)).all(-1).any(-1)
    rides = here & (found.explore.action[..., RIDE] > 0) & found.explore.mask
    return *cells, interval(rides.sum(1).float())


def idle_cells(family: World) -> tuple[tuple[int, int], ...]:
    """Where a line that helps nobody can be boarded."""
    return family.city.idle_stops + family.city.idle_ends if isinstance(family, Bus) else ()


def interval(values: Tensor) -> str:
    return f"{values.mean():.3f} ± {1.96 * values.std() / len(values) ** 0.5:.3f}"


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
