"""How much of the gap between the first episode and an oracle a trained point-robot agent closes, episode by episode.

    python -m benchmarks.point_goal_gap runs/point_goal-0 [more runs]

1,000 held-out goals per run, seven episodes, or thirty where the reward is sparse; there the last column is the share
of tasks in which the goal was reached. The oracle knows the goal and starts where the agent started, so that the luck
of the start cancels. Intervals are 95 % bootstrap intervals over tasks.
"""

import sys

import torch
from torch import Tensor

from bayesmeta.evaluate import evaluate
from bayesmeta.runs import bootstrap_interval, load_run
from bayesmeta.tasks.point_goal import STEP, PointGoal

TASKS = 1000


def main(runs: list[str]) -> None:
    torch.set_num_threads(1)
    print("| run | episode | return | oracle, same starts | gap closed | reached |\n|---|---|---|---|---|---|")
    for name in runs:
        run = load_run(name, "last")
        goals = run.family.sample(TASKS, "test", torch.Generator().manual_seed(2027))
        rollout = evaluate(run.algorithm, run.family, goals, episodes=30 if run.family.sparse else 7, seed=7)
        low, high = bootstrap_interval(rollout.returns)
        mean, reached = rollout.returns.mean(0), (rollout.returns > 0).float().mean(0)
        for k, episode in enumerate(rollout.episodes):
            oracle = oracle_return(run.family, goals, episode.obs[:, 0])
            gap = (mean[k] - mean[0]) / (oracle - mean[0])
            interval = f"{mean[k]:.2f} [{low[k]:.2f}, {high[k]:.2f}]"
            share = f"{reached[k]:.0%}" if run.family.sparse else ""
            print(f"| {name} | {k + 1} | {interval} | {oracle:.2f} | {gap:.1%} | {share} |")


def oracle_return(family: PointGoal, goals: Tensor, position: Tensor) -> Tensor:
    """Mean return of the oracle from these starts."""
    if family.sparse:  # every start is the origin
        return family.reference_returns(goals)["oracle"].mean()
    total = torch.zeros(len(goals))
    for _ in range(family.spec.horizon):
        position = position + STEP * family.oracle_action(position, goals)
        total -= (position - goals).norm(dim=-1)
    return total.mean()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print("nothing to do: give the folders of trained point-robot agents as arguments")
    else:
        main(sys.argv[1:])
