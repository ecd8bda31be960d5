"""Results that several tests look at: an exact belief, an untrained agent's, and a run's folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bayesmeta.algorithms.pearl import PEARL
from bayesmeta.diagnostics.decoding import decode, exact_curve
from bayesmeta.diagnostics.export import results_from
from bayesmeta.diagnostics.run import results_of
from bayesmeta.tasks.linear_gaussian import LinearGaussian
from bayesmeta.tasks.point_goal import PointGoal

TINY = {"widths": [16, 16], "encoder_widths": [16, 16], "latent_dim": 3, "covariance": "full", "rank": 1}


@pytest.fixture(scope="session")
def gaussian():
    """60 tasks of Bayesian linear regression in two dimensions with the exact posterior as the procedure."""
    family = LinearGaussian(dim=2, prior_scale=1.5, noise=0.5)
    generator = torch.Generator().manual_seed(0)
    params = family.sample(60, "test", generator)
    context = family.context(params, 10, generator)
    tree = results_from(context, params, family.exact, family.spec, model=family.model, draws=50)
    tree["decoded"] = decode(tree)
    tree["exact"] = exact_curve(family.exact, context, tree)
    return family, params, context, tree


@pytest.fixture(scope="session")
def trial():
    """An untrained PEARL on ten point-robot tasks, two episodes each, with everything a report can show."""
    family = PointGoal(horizon=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        agent = PEARL(family.spec, **TINY)
    return family, agent, results_of(agent, family, tasks=10, episodes=2, draws=40)


@pytest.fixture
def unpainted(monkeypatch):
    """Reports without drawing, which is what takes the time."""
    monkeypatch.setattr("bayesmeta.diagnostics.report.rendered", lambda draw: b"")


TRAIN = """
import json, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from bayesmeta.runs import build
from bayesmeta.train import Evaluating, Saving, seeded, train
config = json.loads(sys.argv[1])
with seeded(0):
    algorithm, family = build(config)
    train(algorithm, family, iterations=2, run_dir=Path(sys.argv[2]), config=config, progress="quiet",
          evaluating=Evaluating(1, 4, 2), saving=Saving())
print(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """A run of two tiny iterations, trained in a process of its own; ``modules.json`` is what that had imported."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    small = {"train_tasks": 8, "meta_batch": 4, "collect_tasks": 8, "initial_episodes": 1, "updates": 2}
    config = {
        "seed": 0,
        "task": {"_target_": "bayesmeta.tasks.point_goal.PointGoal", "horizon": 8},
        "algorithm": {"_target_": "bayesmeta.algorithms.pearl.PEARL", "_partial_": True, **TINY, **small},
        "eval": {"episodes": 2},
    }
    command = [sys.executable, "-c", TRAIN, json.dumps(config), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "modules.json").write_text(done.stdout.splitlines()[-1])
    return folder
