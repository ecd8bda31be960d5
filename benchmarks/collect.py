"""Environment steps per second, the policy's three layers of 300 included.

1. Point-robot on one thread: ``collect`` with 5 tasks (as published), 80 (the default) and 800, against a sampler in
   the style of the published
   implementation (``_looped_sampler.py``: one environment, one step at a time).
2. HalfCheetah at a target velocity on one thread: ``collect`` with 64 tasks against the same style of sampler on
   gymnasium's HalfCheetah-v5.
3. HalfCheetah with 64 tasks on two threads: ``collect`` against what ``mujoco.batch`` steps by itself, without policy,
   observation, or reward.

``collect`` infers the posterior after every episode; the yardsticks infer nothing. Asked for: 8 times the one-by-one
sampler on point-robot, 5 times on HalfCheetah, and half of the bare simulator.

    python -m benchmarks.collect [--quick]

Median (lowest-highest) over interleaved rounds; ratios are taken round by round. One thread is measured in CPU time,
two are in wall time, which needs a machine with two idle cores.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mujoco.batch import Batch

from bayesmeta.collect import collect
from bayesmeta.inference.product import ProductOfGaussians
from bayesmeta.models.networks import TanhGaussianPolicy
from bayesmeta.tasks.bodies import CHEETAH
from bayesmeta.tasks.cheetah_vel import CheetahVel
from bayesmeta.tasks.mujoco import load_model
from bayesmeta.tasks.point_goal import PointGoal
from bayesmeta.types import ControlFamily, Explorer
from benchmarks._looped_sampler import Cheetah, LoopedSampler, PointRobot
from benchmarks._timing import Clock, Sample, arguments, cpu_time, interleave, machine, table, threads, wall_time

LATENT, WIDTH = 5, 300


@dataclass(frozen=True)
class Job:
    """Something that makes ``steps`` environment steps when called, and the ratio to the first job asked of it."""

    run: Callable[[], Any]
    steps: int
    goal: str = ""


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__, argv)
    rounds = 1 if options.quick else 7
    print(machine())
    with threads(1):
        report("Point-robot, one thread", point_robot(options.quick), rounds, cpu_time)
        report("HalfCheetah at a target velocity, one thread", cheetah(options.quick), rounds, cpu_time)
    with threads(2):
        report("HalfCheetah at a target velocity, two threads", two_threads(options.quick), rounds, wall_time)


def report(title: str, jobs: Mapping[str, Job], rounds: int, clock: Clock) -> None:
    """Print the steps per second of every job and its ratio to the first."""
    seconds = interleave({name: job.run for name, job in jobs.items()}, rounds, clock)
    rates = {name: Sample(tuple(jobs[name].steps / s for s in seconds[name].rounds)) for name in jobs}
    first = next(iter(rates.values()))
    print(f"{title}.\n")
    rows = [[name, rate.show(0), rate.over(first).show(2), jobs[name].goal] for name, rate in rates.items()]
    print(table(["", "steps/s", "times the first", "goal"], rows))


def point_robot(quick: bool) -> dict[str, Job]:
    looped = LoopedSampler(PointRobot, PointRobot.obs_dim, PointRobot.action_dim, LATENT, WIDTH)
    horizon, family = PointRobot.horizon, PointGoal()
    few, default, many = (1, 2, 3) if quick else (5, 80, 800)
    return {
        "one by one": one_by_one(looped, horizon, episodes=1 if quick else 30),
        **{
            f"bayesmeta, {tasks} tasks": batched(family, tasks, episodes=episodes, goal=">= 8")
            for tasks, episodes in ((few, 20), (default, 10), (many, 2))
        },
    }


def cheetah(quick: bool) -> dict[str, Job]:
    looped = LoopedSampler(Cheetah, Cheetah.obs_dim, Cheetah.action_dim, LATENT, WIDTH)
    horizon = 3 if quick else Cheetah.horizon
    return {
        "one by one": one_by_one(looped, horizon, episodes=1 if quick else 5),
        "bayesmeta, 64 tasks": batched(CheetahVel(horizon=horizon, threads=1), 64, episodes=1, goal=">= 5"),
    }


def two_threads(quick: bool) -> dict[str, Job]:
    horizon, tasks = 3 if quick else Cheetah.horizon, 64
    return {
        "mujoco.batch alone": bare(tasks, horizon, workers=2),
        "bayesmeta, 64 tasks": batched(CheetahVel(horizon=horizon, threads=2), tasks, episodes=1, goal=">= 0.5"),
    }


def one_by_one(sampler: LoopedSampler, horizon: int, episodes: int) -> Job:
    def run() -> None:
        for _ in range(episodes):
            sampler.episode(horizon)

    return Job(run, episodes * horizon)


def batched(family: ControlFamily, tasks: int, *, episodes: int, goal: str) -> Job:
    """``collect`` with untrained networks of the published sizes: the policy draws actions, z is a posterior draw."""
    spec = family.spec
    torch.manual_seed(0)
    policy = TanhGaussianPolicy(spec.obs_dim, spec.action_dim, LATENT, (WIDTH,) * 3)
    inference = ProductOfGaussians(spec.x_dim, spec.y_dim, LATENT, widths=(200,) * 3)
    env = family.env(family.sample(tasks, "train", torch.Generator().manual_seed(0)))
    explorer = Explorer(policy)

    def run() -> None:
        collect(env, explorer, inference, spec, episodes=episodes)

    return Job(run, tasks * episodes * spec.horizon, goal)


def bare(tasks: int, horizon: int, workers: int) -> Job:
    """The simulator from its initial state under random controls; five simulator steps are one environment step."""
    batch = Batch(load_model(CHEETAH.xml), tasks, workers)
    control = batch.bind("ctrl")
    actions = 2.0 * torch.rand(horizon, *control.shape, generator=torch.Generator().manual_seed(0)).numpy() - 1.0

    def run() -> None:
        batch.reset()
        for action in actions:
            control[:] = action
            batch.step(nstep=CHEETAH.frame_skip)

    return Job(run, tasks * horizon)


if __name__ == "__main__":
    main()
