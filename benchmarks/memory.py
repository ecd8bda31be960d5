"""Memory of replay, and peak memory of a training iteration.

1. Replay after the first collection and after a number of iterations, on the schedule of a configuration: what the data
   need (float32, once) against what is held. More is held where the tables have grown ahead of the data, by half at
   most, and where tasks have been visited unequally often. Beside it: what a buffer that is allocated in advance asks
   for, in float64 with a million rows per task and a second copy for the encoder, as published.
2. The peak resident memory of a process that builds an agent and makes its first iteration, which collects for every
   task: two episodes each, and two updates long, since an update's peak does not depend on how many there are.

Asked for: memory in proportion to the data, growth by half at most.

    python -m benchmarks.memory [--quick]
"""

import multiprocessing
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bayesmeta.replay import TaskReplay
from bayesmeta.runs import build
from bayesmeta.types import Spec, Transitions
from benchmarks._agents import configured
from benchmarks._timing import arguments, machine, table

SETTINGS = {  # overrides, and the iterations after which replay is looked at
    "defaults, point-robot": ([], (0, 10, 50)),
    "published point-robot": (["experiment=pearl_point_goal"], (0, 10, 200)),
    "published HalfCheetah-vel": (["experiment=pearl_cheetah_vel"], (0, 10, 60)),
}
# Rather than ten episodes per task, which would take the simulator half a minute and add nothing but replay.
FIRST_COLLECTION = "algorithm.initial_episodes=2"
PREALLOCATED_ROWS = 1_000_000


def main(argv: Sequence[str] | None = None) -> None:
    quick = arguments(__doc__, argv).quick
    print(machine())
    print("Replay.\n")
    settings = dict(list(SETTINGS.items())[:1]) if quick else SETTINGS
    rows = []
    for name, (overrides, iterations) in settings.items():
        rows += replay_rows(name, overrides, iterations[:2] if quick else iterations)
    header = ["", "iterations", "transitions", "bytes each", "needed", "held", "held / needed", "allocated in advance"]
    print(table(header, rows))
    print("Peak resident memory of one process, one thread.\n")
    measured = [peak_row(name, overrides) for name, (overrides, _) in settings.items()]
    print(table(["", "agent built", "peak of its first iteration", "more", "of which replay"], measured))


# --- replay --------------------------------------------------------------------------------------------------------


def replay_rows(name: str, overrides: Sequence[str], iterations: Sequence[int]) -> list[list[str]]:
    """One row per entry of ``iterations``, in ascending order."""
    algorithm, _ = build(configured(*overrides))
    spec, horizon = algorithm.spec, algorithm.spec.horizon
    replay = TaskReplay(algorithm.train_tasks, spec.obs_dim, spec.action_dim)
    replay.add(torch.arange(algorithm.train_tasks), blank(algorithm.train_tasks, algorithm.initial_episodes, spec))
    episodes = algorithm.prior_episodes + algorithm.posterior_episodes + algorithm.extra_episodes
    generator = torch.Generator().manual_seed(0)
    data = blank(algorithm.collect_tasks, episodes, spec)
    rows, done = [], 0
    for target in iterations:
        for _ in range(done, target):
            tasks = torch.randperm(algorithm.train_tasks, generator=generator)[: algorithm.collect_tasks]
            for start in range(0, episodes * horizon, horizon):
                replay.add(tasks, episode(data, start, horizon))
        done = target
        rows.append(replay_row(name, target, replay, spec))
    return rows


def replay_row(name: str, iterations: int, replay: TaskReplay, spec: Spec) -> list[str]:
    transitions = int(replay.size.sum())
    needed = 4 * transitions * (2 * spec.obs_dim + spec.action_dim + 3)  # with both rewards and the terminal flag
    in_float64 = 8 * (2 * spec.obs_dim + spec.action_dim + 1) + 1
    in_advance = 2 * replay.tasks * PREALLOCATED_ROWS * in_float64
    return [
        name,
        str(iterations),
        f"{transitions:,}",
        f"{replay.nbytes / transitions:.0f}",
        megabytes(needed),
        megabytes(replay.nbytes),
        f"{replay.nbytes / needed:.2f}",
        f"{in_advance / 1e9:,.0f} GB",
    ]


def blank(tasks: int, episodes: int, spec: Spec) -> Transitions:
    """Transitions of the right shape: their memory does not depend on what they hold."""
    shape = (tasks, episodes * spec.horizon)
    obs, flags = torch.zeros(*shape, spec.obs_dim), torch.zeros(shape, dtype=torch.bool)
    reward = torch.zeros(shape)
    return Transitions(obs, torch.zeros(*shape, spec.action_dim), reward, reward, obs, flags, flags, ~flags)


def episode(data: Transitions, start: int, length: int) -> Transitions:
    """``length`` steps of every task."""
    return Transitions(**{name: value[:, start : start + length] for name, value in vars(data).items()})


# --- peak of a process ---------------------------------------------------------------------------------------------


def peak_row(name: str, overrides: Sequence[str]) -> list[str]:
    """Measured in a process of its own, since a process's peak never comes down."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        built, peak, replay = pool.apply(first_iteration, ([*overrides, FIRST_COLLECTION, "algorithm.updates=2"],))
    return [name, megabytes(built), megabytes(peak), megabytes(peak - built), megabytes(replay)]


def first_iteration(overrides: Sequence[str]) -> tuple[int, int, int]:
    """Peak bytes of this process before and after an agent's first iteration, and what its replay holds."""
    torch.set_num_threads(1)
    algorithm: Any
    algorithm, family = build(configured(*overrides))
    algorithm.setup(family, seed=0)
    built = peak_memory()
    algorithm.step()
    return built, peak_memory(), algorithm.replay.nbytes


def peak_memory() -> int:
    """The most memory this process has had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux hands a parent's peak down in the portable count below, but not in this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


if __name__ == "__main__":
    main()
