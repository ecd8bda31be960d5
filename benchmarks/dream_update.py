"""Speed of DREAM on one thread: environment steps per second with the updates they make due, and what an update takes.

On the map of 9 x 9 at the published network sizes, 32 trials a batch and one update for every 4 environment steps of
either policy, between a third and a half of which are random. The public code is said to make 56 environment steps per
second so, 71 ms an update, on one core of another machine: the ratio to that is no ratio of one process.

    python -m benchmarks.dream_update [--quick]
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from bayesmeta.algorithms.dream import DREAM
from bayesmeta.rl.q_learner import Schedule
from bayesmeta.tasks.bus import Bus
from bayesmeta.train import seeded
from benchmarks._timing import arguments, interleave, machine, repeat, table, threads

PUBLISHED = 56.0  # environment steps per second


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__, argv)
    print(machine())
    with threads(1), seeded(0):
        schedule = Schedule(
            trials_per_iteration=64 if options.quick else 96,
            execute_after=96,
            explore_after=96,
            epsilon_steps=5_000,
        )
        for bottleneck in ("hinge",) if options.quick else ("hinge", "kl"):
            print(f"## bottleneck: {bottleneck}\n")
            print(report(bottleneck, schedule, rounds=1 if options.quick else 10))


def report(bottleneck: Any, schedule: Schedule, rounds: int) -> str:
    """The tables of one form."""
    family = Bus("map")
    agent = DREAM(family.spec, bottleneck=bottleneck, schedule=schedule)
    agent.setup(family, 0)
    agent.step()  # trials to learn from
    batch = agent.replay.sample(schedule.batch, agent._generator)
    batches, labelled = agent.replay.sample(8 * schedule.batch, agent._generator), agent.relabelled(batch)
    parts: dict[str, Callable[[], object]] = {
        "update of execution, code and belief": lambda: agent.execute.descend(agent.execution_loss(batch)["loss"]),
        "of which its loss": lambda: agent.execution_loss(batch),
        "update of exploration, labelled": lambda: agent.explore.descend(agent.exploration_loss(labelled)["loss"]),
        "the labels of 8 batches at once": lambda: agent.bonus(batches),
        f"{schedule.trials} trials in lockstep": agent._collect,
        "a batch from replay": lambda: agent.replay.sample(schedule.batch, agent._generator),
    }
    times = interleave({name: repeat(part, 3) for name, part in parts.items()}, rounds)
    rows = [[name, sample.map(lambda s: 1e3 * s / 3).show(2)] for name, sample in times.items()]
    for learner in (agent.execute, agent.explore):
        learner.due(begun=False)  # what the trials above have made due
    steps, began = agent.execute.steps + agent.explore.steps, time.process_time()
    agent.step()
    rate = (agent.execute.steps + agent.explore.steps - steps) / (time.process_time() - began)
    lengths = [float(part.mask.sum(1).float().mean()) for part in (batch.explore, batch.execute)]
    return (
        table(["", "ms"], rows)
        + f"\n{rate:.0f} environment steps per second of CPU with updates, {rate / PUBLISHED:.1f} times the published "
        + f"code's {PUBLISHED:.0f}; episodes of {lengths[0]:.1f} and {lengths[1]:.1f} steps\n"
    )


if __name__ == "__main__":
    main()
