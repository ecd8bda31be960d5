"""How much of the gap between the first episode and an oracle a trained point-robot agent closes, episode by episode.

    python -m benchmarks.point_goal_gap runs/point_goal-0 [more runs]

1,000 fresh held-out goals per run, seven episodes. The oracle knows the goal and starts where the agent started, so
that the luck of the start cancels. Intervals are 95 % bootstrap intervals over tasks.
"""

import sys

import torch

from bayesmeta.evaluate import evaluate
from bayesmeta.runs import bootstrap_interval, load_run
from bayesmeta.tasks.point_goal import STEP

TASKS, EPISODES = 1000, 7


def main(runs: list[str]) -> None:
    torch.set_num_threads(1)
    print("| run | episode | return | oracle, same starts | gap closed |\n|---|---|---|---|---|")
    for name in runs:
        run = load_run(name, "last")
        goals = run.family.sample(TASKS, "test", torch.Generator().manual_seed(2027))
        rollout = evaluate(run.algorithm, run.family, goals, episodes=EPISODES, seed=7)
        low, high = bootstrap_interval(rollout.returns)
        mean = rollout.returns.mean(0)
        for k, episode in enumerate(rollout.episodes):
            position, oracle = episode.obs[:, 0], torch.zeros(TASKS)
            for _ in range(episode.obs.shape[1]):
                position = position + STEP * run.family.oracle_action(position, goals)
                oracle -= (position - goals).norm(dim=-1)
            gap = (mean[k] - mean[0]) / (oracle.mean() - mean[0])
            interval = f"{mean[k]:.2f} [{low[k]:.2f}, {high[k]:.2f}]"
            print(f"| {name} | {k + 1} | {interval} | {oracle.mean():.2f} | {gap:.1%} |")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print("nothing to do: give the folders of trained point-robot agents as arguments")
    else:
        main(sys.argv[1:])
