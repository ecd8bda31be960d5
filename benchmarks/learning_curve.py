"""The learning curves of finished or unfinished runs as one small table and one picture.

    python -m benchmarks.learning_curve docs/results/point_goal runs/point_goal-0 runs/point_goal-1

writes ``docs/results/point_goal.csv`` (a row per evaluation: run, iteration, environment steps, CPU seconds, mean test
return of every adaptation episode) and ``docs/results/point_goal.png``.
"""

import csv
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def rows(run: Path) -> list[dict[str, float | str]]:
    """One row per evaluation of a run."""
    metrics = {row["iteration"]: row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}
    found: list[dict[str, float | str]] = []
    for line in (run / "evaluation" / "returns.jsonl").read_text().splitlines():
        evaluation = json.loads(line)
        iteration = evaluation["iteration"]
        known = {key: metrics[iteration][key] for key in ("env_steps", "cpu_seconds")}
        returns = {f"episode_{k}": round(value, 3) for k, value in enumerate(evaluation["returns"], 1)}
        found.append({"run": run.name, "iteration": iteration, **known, **returns})
    return found


def main(target: str, runs: list[str]) -> None:
    curves = [rows(Path(run)) for run in runs]
    with Path(f"{target}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(curves[0][0]))
        writer.writeheader()
        for curve in curves:
            writer.writerows(curve)
    episodes = [key for key in curves[0][0] if key.startswith("episode_")]
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    colours = plt.get_cmap("viridis")
    for number, episode in enumerate(episodes):
        for index, curve in enumerate(curves):
            steps, values = [row["env_steps"] for row in curve], [row[episode] for row in curve]
            label = f"episode {number + 1}" if index == 0 and number in (*range(3), len(episodes) - 1) else None
            axes.plot(steps, values, color=colours(0.9 * number / len(episodes)), label=label, linewidth=1.2)
    axes.set_xlabel("environment steps of meta-training")
    axes.set_ylabel("mean test return")
    axes.legend(frameon=False)
    figure.savefig(f"{target}.png", dpi=110)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        print("nothing to do: give where to write and the folders of runs")
    else:
        main(sys.argv[1], sys.argv[2:])
