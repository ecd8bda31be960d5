"""The command as its user meets it: processes, exit codes, messages, folders."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from omegaconf import OmegaConf

from tests.runs import jobs
from tests.runs.jobs import CONFIGS, TINY, Command, cli, cli_fresh, lines

# Runs the command line in a process and says what it had imported and how much CPU it took, imports included.
PROBE = """
import sys, time
from bayesmeta.cli import dispatch
try:
    code = dispatch(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
heavy = [name for name in ("torch", "pyro", "arviz", "gymnasium", "mujoco") if name in sys.modules]
print("\\nPROBE", code, time.process_time(), *heavy)
"""
FILES = ["metrics.jsonl", "config.yaml", "versions.json", "done", "evaluation", "checkpoints"]


def probe(*arguments, cwd, limit=None, **env):
    """Exit code, heavy imports, stdout, stderr of a command line, which must take less than ``limit`` seconds of CPU.

    CPU and not wall time, and the least of three attempts: the rest says more about the machine's other processes.
    """
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", PROBE, *arguments],
            cwd=cwd,
            env=os.environ | env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        out, _, report = done.stdout.rpartition("\nPROBE ")
        code, seconds, *heavy = report.split()
        if limit is None or float(seconds) < limit:
            return int(code), heavy, out, done.stderr
    pytest.fail(f"three attempts took more than {limit} s of CPU, the last one {seconds}")


OWN = ["--config-dir", str(CONFIGS), "algorithm=tiny", "task=short"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["task=chetah_vel"],
            r"task = chetah_vel: no such task\. Did you mean cheetah_vel\? Valid: ant_dir, .*point_goal",
        ),
        (["algorithm=perl"], r"algorithm = perl: no such algorithm\. Did you mean pearl\? Valid: .*pearl"),
        (["experiment=nothing"], r"experiment = nothing: no such experiment\."),
        (["algoritm=pearl"], r"algoritm = pearl: no such key\. Did you mean algorithm\? Valid: seed, device"),
        (
            [*OWN, "algorithm.lrr=1"],
            r"algorithm\.lrr = 1: no such key\. Did you mean algorithm\.lr\? Valid: .*covariance",
        ),
        ([*OWN, "+algorithm.lrr=1"], r"algorithm\.lrr: no such key\. Did you mean lr\? Valid here: .*covariance"),
        (
            [*OWN[:2], "experiment=misspelt"],
            r"algorithm\.lrr: no such key\. Did you mean lr\? Valid here: .*covariance",
        ),
        ([*OWN, "+new.key=1"], r"new: no such key\. Valid here: .*seed"),
        (["eval.evry=3"], r"eval\.evry = 3: no such key\. Did you mean eval\.every\? Valid: eval\.every, eval\.tasks"),
        ([*OWN, "algorithm.lr=abc"], r"algorithm\.lr = abc: expected a number in \(0, 1\], got a string"),
        ([*OWN, "algorithm.lr=-1"], r"algorithm\.lr = -1: expected a number in \(0, 1\]\."),
        (
            [*OWN, "algorithm.covariance=ful"],
            r"algorithm\.covariance = ful: expected one of diagonal, full\. Did you mean full\?",
        ),
        ([*OWN, "algorithm.discount=high"], r"algorithm\.discount = high: expected a number, got a string"),
        ([*OWN, "task=quiz"], r"task = quiz: PEARL needs a control task, this is supervised\. Valid tasks: .*short"),
        (
            ["algorithm=maml"],
            r"task = point_goal: MAML needs a supervised task, this is control\. Valid tasks: .*sinusoid",
        ),
        (["algorithm.widths=[1"], r"algorithm\.widths=\[1: expected key=value"),
        (["resume=must"], r"resume = must: there is no checkpoint in .*use resume=auto"),
    ],
)
def test_wrong_configuration_is_one_clear_error_before_torch(tmp_path, arguments, message):
    code, heavy, _, err = probe("train", *arguments, cwd=tmp_path, limit=2)
    assert code == 2
    assert re.search(f"^error: {message}", err), err
    assert "Traceback" not in err and len(err.strip().splitlines()) == 1
    assert not heavy
    assert not list(tmp_path.iterdir())


def test_a_constructors_objection_is_one_clear_error_too(tmp_path):
    done = cli("train", *TINY, "algorithm.meta_batch=9", cwd=tmp_path)
    assert done.process.exitcode == 2
    assert re.fullmatch(r"error: PEARL: expected meta_batch \(9\) .*\n", done.stderr)
    assert not list(tmp_path.iterdir())


def test_a_family_without_enough_data_is_one_clear_error(tmp_path):
    done = cli("train", "algorithm=maml", "task=sinusoid", "task.train_tasks=20", "task.train_shots=19", cwd=tmp_path)
    assert done.process.exitcode == 2
    assert re.fullmatch(r"error: FixedTasks: expected at most 19 data .* got shots = 20, .*\n", done.stderr)


@pytest.mark.parametrize(
    "arguments, shown",
    [
        (["--help"], ["train", "evaluate", "diagnose", "list"]),
        (["train", "--help"], ["task=ant_dir|", "algorithm=", "|pearl", "iterations: 100", "int [0, 4294967295]"]),
        (["train", "algorithm=pearl", "-h"], ["algorithm=pearl: PEARL", "latent_dim: "]),
        (["evaluate", "--help"], ["run: null # the run folder", "episodes"]),
        (["diagnose", "--help"], ["run: null # the run folder", "draws"]),
        (["list"], ["pearl ", "PEARL", "point_goal ", "Point robot", "experiment="]),
        (["--version"], ["0."]),
        (["train", "-sc", "install=bash"], ["complete", "bayesmeta"]),
    ],
)
def test_help_is_light(tmp_path, arguments, shown):
    code, heavy, out, err = probe(*arguments, cwd=tmp_path, limit=0.7)
    assert code == 0 and not err
    for text in shown:
        assert text in out
    assert not heavy
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "line, suggested",
    [
        ("bayesmeta ", "train evaluate diagnose list"),
        ("bayesmeta ev", "evaluate"),
        ("bayesmeta train task=cheetah", "task=cheetah_dir task=cheetah_vel"),
        ("bayesmeta train see", "seed="),
        ("bayesmeta list x", ""),
    ],
)
def test_completion(tmp_path, line, suggested):
    code, heavy, out, err = probe("-sc", "query=bash", cwd=tmp_path, limit=0.7, COMP_LINE=line)
    assert (code, out.strip(), err) == (0, suggested, "")
    assert not heavy


def test_unknown_command(tmp_path):
    code, heavy, _, err = probe("trian", cwd=tmp_path)
    assert code == 2 and not heavy
    assert err == "error: trian: no such command. Did you mean train? Valid: train, evaluate, diagnose, list\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, and what the command said."""
    cwd = tmp_path_factory.mktemp("trained")
    return cwd, cli_fresh("train", *TINY, "iterations=4", cwd=cwd, PYTHONHASHSEED="1")


def only_run(cwd):
    (run_dir,) = (path.parent for path in cwd.glob("runs/*/*/metrics.jsonl"))
    return run_dir


def test_train_leaves_one_complete_folder(trained):
    cwd, done = trained
    assert done.returncode == 0 and not done.stderr
    run_dir = only_run(cwd)
    assert [p.name for p in cwd.iterdir()] == ["runs"]
    assert run_dir.parent.name == "tiny-short" and run_dir.name.endswith("+seed-0")
    assert set(FILES) <= {p.name for p in run_dir.iterdir()}
    assert [line["iteration"] for line in lines(run_dir)] == [1, 2, 3, 4]
    assert [line["iteration"] for line in lines(run_dir, "evaluation/returns.jsonl")] == [2, 4]
    assert f"run folder: {run_dir.relative_to(cwd)}" in done.stdout and "done: 4 iterations" in done.stdout
    config = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"))
    assert config["algorithm"]["lr"] == 1e-3 and "_schema_" not in json.dumps(config)


def test_the_same_command_again_does_nothing_and_quickly(trained):
    cwd, _ = trained
    before = {p: p.stat().st_mtime_ns for p in only_run(cwd).rglob("*")}
    code, heavy, out, _ = probe("train", *TINY, "iterations=4", cwd=cwd)
    assert code == 0 and "is done: nothing left to do" in out and not heavy
    assert {p: p.stat().st_mtime_ns for p in only_run(cwd).rglob("*")} == before


def test_same_seed_in_another_process_is_the_same_run(trained, tmp_path):
    """Another hash seed and another folder, and TensorBoard on: only time differs."""
    arguments = [a for a in TINY if "tensorboard" not in a]
    done = cli_fresh("train", *arguments, "iterations=4", "run_dir=a b/x=1,y", cwd=tmp_path, PYTHONHASHSEED="2")
    assert done.returncode == 0, done.stderr
    jobs.assert_same_run(tmp_path / "a b" / "x=1,y", only_run(trained[0]))
    assert list((tmp_path / "a b" / "x=1,y" / "tensorboard").iterdir())


def test_evaluate_prints_every_episode_and_stores_it(trained):
    cwd, _ = trained
    run_dir = only_run(cwd)
    done = cli("evaluate", f"run={run_dir}", "tasks=6", "episodes=3", "threads=1", cwd=cwd)
    assert done.process.exitcode == 0, done.stderr
    (file,) = (run_dir / "evaluation").glob("*.json")
    record = json.loads(file.read_text())
    returns = record["returns"]
    assert (len(returns), {len(row) for row in returns}, record["split"]) == (6, {3}, "test")
    for k, line in enumerate(re.findall(r"^ +\d  .*$", done.stdout, re.MULTILINE)):
        mean = sum(row[k] for row in returns) / 6
        shown = [float(x) for x in re.findall(r"-?[\d.]+(?:e-?\d+)?", line)]
        assert shown == pytest.approx([k + 1, mean, record["low"][k], record["high"][k]], rel=1e-3)
        assert record["low"][k] < mean < record["high"][k]
    assert k == 2


@pytest.mark.parametrize(
    "command, arguments, message",
    [
        ("evaluate", [], r"run = null: expected a run folder, run=DIR\. Newest here: runs/tiny-short/"),
        ("evaluate", ["run=runs/tiny-shrt"], r"run = runs/tiny-shrt: expected a run folder"),
        ("diagnose", ["run=nowhere"], r"run = nowhere: expected a run folder"),
        ("evaluate", ["run=x", "split=tset"], r"split = tset: expected one of train, test, ood\. Did you mean test\?"),
        ("evaluate", ["rnu=x"], r"rnu = x: no such key\. Did you mean run\?"),
    ],
)
def test_wrong_evaluation_is_one_clear_error(trained, command, arguments, message):
    code, heavy, _, err = probe(command, *arguments, cwd=trained[0])
    assert code == 2 and not heavy
    assert re.search(f"^error: {message}", err), err


def test_a_foreign_config_is_not_built(trained, tmp_path):
    import shutil

    run_dir = tmp_path / "run"
    shutil.copytree(only_run(trained[0]), run_dir)
    text = (run_dir / "config.yaml").read_text()
    hostile = text.replace("bayesmeta.tasks.point_goal.PointGoal", "bayesmeta.folder.os.mkdir")
    hostile = hostile.replace("  horizon: 5", f"  path: {tmp_path / 'sentinel'}")
    assert hostile != text
    (run_dir / "config.yaml").write_text(hostile)
    done = cli("evaluate", f"run={run_dir}", cwd=tmp_path)
    assert done.process.exitcode == 2 and "task._target_ = bayesmeta.folder.os.mkdir is not one of" in done.stderr
    assert not (tmp_path / "sentinel").exists()


def test_damaged_checkpoint_is_named_and_passed_over(trained, tmp_path):
    import shutil

    run_dir = tmp_path / "run"
    shutil.copytree(only_run(trained[0]), run_dir)
    data = run_dir / "checkpoints" / "iteration-000000004" / "algorithm.safetensors"
    data.write_bytes(data.read_bytes()[:-1] + bytes([data.read_bytes()[-1] ^ 1]))
    done = cli("train", *TINY, "iterations=5", f"run_dir={run_dir}", cwd=tmp_path)
    assert done.process.exitcode == 0
    assert re.match(r"warning: passed over a damaged checkpoint: algorithm: the sha256 of .* was damaged", done.stderr)
    assert [line["iteration"] for line in lines(run_dir)] == [1, 2, 3, 4, 5]


def test_sweep_goes_on_after_a_failed_job(tmp_path):
    """Five jobs, of which one has a value that the constructor refuses; again: only that one is tried."""
    sweep = ["train", "-m", *TINY, "iterations=1", "eval.every=0", "algorithm.meta_batch=1,9,2,3,4"]
    first = cli(*sweep, cwd=tmp_path)
    assert first.process.exitcode == 1
    assert len(list(tmp_path.glob("runs/*/*/done"))) == 4
    summary = first.stdout[first.stdout.index("1 failed; the same command again") :]
    assert len(re.findall(r"^  .*algorithm.meta_batch=9", summary, re.MULTILINE)) == 1
    assert first.stderr.count("error: PEARL: expected meta_batch (9)") == 1
    again = cli(*sweep, cwd=tmp_path)
    assert again.process.exitcode == 1
    assert again.stdout.count("is done: nothing left to do") == 4 and "run folder:" not in again.stdout


def test_sweep_with_a_misspelt_key_starts_nothing(tmp_path):
    code, heavy, out, err = probe("train", "-m", *TINY, "algorithm.lrr=1,2", cwd=tmp_path)
    assert code == 2 and not heavy and "job" not in out
    assert "algorithm.lrr = 1,2: no such key. Did you mean algorithm.lr?" in err
    assert not list(tmp_path.glob("runs/*/*"))


def begin(cwd, *arguments, done=2):
    """A training process that has ``done`` iterations behind it, and its folder."""
    command = Command("train", *TINY, *arguments, cwd=cwd)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and command.process.is_alive():
        found = [p for p in cwd.glob("runs/*/*/metrics.jsonl") if p.read_bytes().count(b"\n") >= done]
        if found:
            return command, found[0].parent
        time.sleep(0.01)
    command.process.kill()
    pytest.fail(f"the run does not begin: {command.stdout} {command.stderr}")


@pytest.mark.parametrize("signum, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_and_has_its_own_exit_code(tmp_path, signum, code):
    command, run_dir = begin(tmp_path, "iterations=100000", "checkpoint.every=0")
    os.kill(command.process.pid, signum)
    assert command.wait() == code
    assert command.stderr == f"stopped by {signum.name}\n"
    stopped_at = len(lines(run_dir))
    assert jobs.state(run_dir)["iteration"] == stopped_at
    again = cli("train", *TINY, f"iterations={stopped_at + 1}", "checkpoint.every=0", cwd=tmp_path)
    assert again.process.exitcode == 0
    assert [line["iteration"] for line in lines(run_dir)] == list(range(1, stopped_at + 2))


def test_signal_ends_the_whole_sweep(tmp_path):
    command, _ = begin(tmp_path, "iterations=100000", "seed=0,1,2", "-m")
    os.kill(command.process.pid, signal.SIGUSR1)
    assert command.wait() == 138
    assert len(list(tmp_path.glob("runs/*/*/metrics.jsonl"))) == 1


def test_second_interrupt_ends_at_once(tmp_path):
    # One iteration of this size takes far longer than the test waits.
    command, _ = begin(tmp_path, "algorithm.updates=100000000", done=0)
    time.sleep(1)
    os.kill(command.process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert command.process.is_alive(), "the first one waits for the iteration"
    os.kill(command.process.pid, signal.SIGINT)
    assert command.wait(timeout=5) == -signal.SIGINT


def test_full_disk_stops_with_a_message_and_the_last_checkpoint(tmp_path):
    assert cli("train", *TINY, "iterations=1", cwd=tmp_path).process.exitcode == 0
    run_dir = only_run(tmp_path)
    largest = max(p.stat().st_size for p in run_dir.rglob("*.safetensors"))
    done = cli("train", *TINY, "iterations=200", cwd=tmp_path, largest=largest + 100)
    assert done.process.exitcode == 1
    assert re.match(r"error: could not write .*/iteration-0000000\d\d: it needs [\d,]+ bytes and ", done.stderr)
    assert "earlier checkpoints are intact: make room and run the same command again" in done.stderr
    saved = jobs.state(run_dir)["iteration"]
    again = cli("train", *TINY, f"iterations={saved + 1}", cwd=tmp_path)
    assert again.process.exitcode == 0 and jobs.state(run_dir)["iteration"] == saved + 1
