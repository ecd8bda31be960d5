"""From nothing to a trained PEARL agent on the point robot, its adaptation to unseen goals, and a report to open.

    python examples/demo.py [iterations]

Trains in ``runs/demo`` (again: continues there), adapts the agent to 200 held-out goals for five episodes, and sets
the returns beside an oracle that knows the goal and beside the same agent without adaptation (z from the prior in every
episode). The report shows the same agent's posterior beside the exact one.
"""

# test: 2

import sys
from dataclasses import replace
from pathlib import Path

import torch

from bayesmeta.cli import dispatch
from bayesmeta.collect import collect
from bayesmeta.evaluate import evaluate
from bayesmeta.runs import load_run
from bayesmeta.train import seeded

RUN = Path("runs/demo")
TASKS, EPISODES = 200, 5


def main(iterations: int = 60) -> int:
    code = dispatch(["train", "experiment=point_goal", f"run_dir={RUN}", f"iterations={iterations}"])
    if code:
        return code
    run = load_run(RUN, "last")
    family, algorithm = run.family, run.algorithm
    goals = family.sample(TASKS, "test", torch.Generator().manual_seed(2026))
    adapted = evaluate(algorithm, family, goals, episodes=EPISODES, seed=1).returns.mean(0)
    with seeded(1):
        explorer = replace(algorithm.explorer, prior_episodes=EPISODES)
        env = family.env(goals)
        unadapted = collect(env, explorer, algorithm.inference, family.spec, episodes=EPISODES, seed=1).returns.mean(0)
    oracle = family.reference_returns(goals)["oracle"].mean()

    print(f"\nMean return on {TASKS} held-out goals, by adaptation episode")
    print(f"{'episode':>8}{'adapted':>10}{'no adaptation':>15}{'oracle':>9}")
    for k in range(EPISODES):
        print(f"{k + 1:>8}{adapted[k]:>10.2f}{unadapted[k]:>15.2f}{oracle:>9.2f}")
    print()
    dispatch(["diagnose", f"run={RUN}"])  # its exit code says whether every diagnostic passed; the report says which
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
