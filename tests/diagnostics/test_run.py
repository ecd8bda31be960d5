"""`diagnose` on a run's folder, and what training must not import."""

import json
import subprocess
import sys

import numpy as np
import pytest

from bayesmeta import diagnostics
from bayesmeta.algorithms.pearl import PEARL
from bayesmeta.diagnostics.results import array, attribute, load
from bayesmeta.diagnostics.run import diagnose, results_of
from bayesmeta.diagnostics.verdict import passed, verdicts
from bayesmeta.tasks.point_goal import PointGoal

TINY = {"widths": [16, 16], "encoder_widths": [16, 16], "latent_dim": 3}


@pytest.fixture(scope="module")
def diagnosed(run_folder):
    with pytest.MonkeyPatch.context() as patch:  # what figures look like is tested elsewhere, and takes the time
        patch.setattr("bayesmeta.diagnostics.report.rendered", lambda draw: b"")
        return run_folder, diagnose(run_folder, tasks=10, draws=20)


def test_diagnose_writes_results_and_report(diagnosed):
    folder, good = diagnosed
    assert {p.name for p in (folder / "diagnostics").iterdir()} == {"results.nc", "report.html"}
    tree = load(folder / "diagnostics" / "results.nc")
    assert good is passed(verdicts(tree))
    assert array(tree, "posterior", "z").shape == (1, 20, 6, 10, 3)
    assert {"decoded", "exact", "trajectory"} <= set(tree.children)
    assert attribute(tree, "config")["task"]["horizon"] == 8 and attribute(tree, "iteration") in (1, 2)
    assert attribute(tree, "algorithm") == "PEARL" and attribute(tree, "inference_kind") == "amortised"
    assert "Learning curve" not in (folder / "diagnostics" / "report.html").read_text()  # it is in the picture
    assert "Test return by adaptation episode" in (folder / "diagnostics" / "report.html").read_text()


def test_diagnose_prints_verdicts_and_paths(diagnosed, capsys, unpainted):
    folder, _ = diagnosed
    before = load(folder / "diagnostics" / "results.nc")
    diagnose(folder, tasks=10, draws=20)
    printed = capsys.readouterr().out
    for verdict in verdicts(before):
        assert verdict.question in printed and verdict.found in printed
    assert str(folder / "diagnostics" / "results.nc") in printed and "report.html" in printed
    again = load(folder / "diagnostics" / "results.nc")
    for group in before.children:
        assert again[group].identical(before[group]), group


def test_diagnose_takes_episodes_and_seed(diagnosed, unpainted):
    folder, _ = diagnosed
    diagnose(folder, tasks=10, draws=5, episodes=1, seed=1, checkpoint="last")
    tree = load(folder / "diagnostics" / "results.nc")
    assert tree["trajectory"].sizes["episode"] == 1 and attribute(tree, "iteration") == 2
    assert attribute(tree, "seed") == 1 and attribute(tree, "training_seed") == 0
    assert not any("as it adapts" in verdict.question for verdict in verdicts(tree))  # there is nothing to compare


def test_too_few_tasks_are_refused(run_folder):
    with pytest.raises(ValueError, match=r"tasks = 9: expected at least 10, for parameters decoded on held-out tasks"):
        diagnose(run_folder, tasks=9)


@pytest.mark.gpu
def test_an_agent_on_a_gpu():
    family = PointGoal(horizon=8)
    agent = PEARL(family.spec, device="cuda", **TINY)
    tree = results_of(agent, family, tasks=10, episodes=2, draws=5, device="cuda")
    assert np.isfinite(array(tree, "posterior", "z")).all() and "exact" in tree.children


def test_training_imports_no_plots_and_no_tables(run_folder):
    modules = set(json.loads((run_folder / "modules.json").read_text()))
    assert "bayesmeta.train" in modules
    heavy = {"arviz", "arviz_base", "arviz_plots", "arviz_stats", "matplotlib", "pandas", "xarray", "netCDF4"}
    assert not heavy & modules


def test_diagnostics_are_lazy():
    code = "import sys, bayesmeta.diagnostics as d; d.__doc__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "xarray", "matplotlib", "arviz"} & set(done.stdout.split())


def test_public_names():
    assert all(callable(getattr(diagnostics, name)) for name in diagnostics._LAZY)
    with pytest.raises(AttributeError, match=r"has no attribute 'diagnos'; it offers .*'diagnose'"):
        diagnostics.diagnos  # noqa: B018
