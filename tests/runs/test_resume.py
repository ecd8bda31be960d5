"""A run that was interrupted, however, ends as if it had not been: bit for bit."""

import random
import signal
import time
from importlib.resources import files

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from bayesmeta import checkpoint
from bayesmeta.config import ConfigError, without_schema
from bayesmeta.runs import build
from bayesmeta.signals import Interrupted
from bayesmeta.train import Evaluating, Saving, derived_seed, seeded
from tests.runs import jobs
from tests.runs.jobs import assert_same_run, exit_code, lines, start, state, tiny, tiny_train

ALGORITHMS = sorted(f.name[:-5] for f in files("bayesmeta.configs").joinpath("algorithm").iterdir() if "yaml" in f.name)
# What makes any algorithm quick, where it has a setting of that name: in itself or in how its episodes are made.
SMALL = {
    "train_tasks": 4,
    "collect_tasks": 4,
    "meta_batch": 2,
    "updates": 2,
    "initial_episodes": 1,
    "rl_batch": 8,
    "steps": 2,
    "trials": 4,
    "trials_per_iteration": 8,
    "batch": 4,
    "capacity": 64,
    "execute_after": 8,
    "explore_after": 8,
    "steps_per_update": 8,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run of six iterations."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert exit_code(start(jobs.job_train, run_dir, 6)) == 0
    return run_dir


def test_the_comparison_sees_a_single_bit(whole):
    one, other = state(whole), state(whole)
    assert jobs.difference(one, other) is None
    other["algorithm"]["replay"]["rows"].view(-1).view(dtype=one["rng"]["torch"].dtype)[5] ^= 1
    assert jobs.difference(one, other) == ".algorithm.replay.rows"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_resumes_bit_exactly(name, tmp_path):
    with initialize_config_module("bayesmeta.configs", version_base="1.3"):
        composed = OmegaConf.to_container(compose("train", [f"algorithm={name}"]), resolve=True)
        kind = composed["algorithm"]["_schema_"]["_task_"]
        if kind != "control":
            task = "map_5" if kind == "discrete" else "digits" if name == "versa" else "sinusoid"
            composed = OmegaConf.to_container(compose("train", [f"algorithm={name}", f"task={task}"]), resolve=True)
    config = without_schema(composed)
    for settings in (config["algorithm"], *(config["algorithm"].get(part, {}) for part in ("episodes", "schedule"))):
        settings |= {key: value for key, value in SMALL.items() if key in settings}

    def session(run_dir, iterations):
        with seeded(0):
            tiny_train(run_dir, iterations, build(config), evaluating=Evaluating(1, 2, 2))

    session(tmp_path / "whole", 4)
    session(tmp_path / "parts", 1)
    session(tmp_path / "parts", 2)
    session(tmp_path / "parts", 4)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    assert state(tmp_path / "whole")["iteration"] == 4


def test_resumed_in_new_processes_equals_uninterrupted(whole, tmp_path):
    for iterations in (2, 4, 6):
        assert exit_code(start(jobs.job_train, tmp_path, iterations)) == 0
    assert_same_run(tmp_path, whole)
    streams = [checkpoint.load_latest(d / "checkpoints").components["rng"]["python"] for d in (tmp_path, whole)]
    assert streams[0] == streams[1]


def test_same_seed_twice_and_another_seed(whole, tmp_path):
    tiny_train(tmp_path / "again", 6)
    assert_same_run(tmp_path / "again", whole)
    tiny_train(tmp_path / "other", 6, seed=1)
    assert lines(tmp_path / "other") != lines(whole)


@pytest.mark.parametrize(
    "settings",
    [
        {"evaluating": Evaluating()},
        {"evaluating": Evaluating(1, 5, 1)},
        {"saving": Saving(every=0, seconds=0)},
        {"saving": Saving(every=3, seconds=1e-9, keep=1)},
    ],
)
def test_evaluating_and_saving_do_not_change_training(whole, tmp_path, settings):
    tiny_train(tmp_path, 6, **settings)
    assert lines(tmp_path) == lines(whole)
    for name in ("algorithm", "rng"):
        assert jobs.difference(state(tmp_path)[name], state(whole)[name]) is None


def test_seeds_of_different_purposes_are_unrelated():
    seeds = {derived_seed(seed, purpose) for seed in range(100) for purpose in ("training", "evaluation tasks", "x")}
    assert len(seeds) == 300 and all(0 <= s < 2**31 for s in seeds)


# The first twelve calls of a save flush the logs and write the components and the manifest, then the folder is renamed
# and flushed; from the third save on an older one is renamed and deleted. The last calls mark the run as done.
@pytest.mark.parametrize("at", [2, 5, 8, 11, 12, 13, 14, 23, 25, 38, 39, 40, 83, 84])
def test_killed_inside_a_save(whole, tmp_path, at):
    assert exit_code(start(jobs.job_die, tmp_path, 6, at)) == -signal.SIGKILL
    assert exit_code(start(jobs.job_train, tmp_path, 6)) == 0
    assert_same_run(tmp_path, whole)
    assert not [p for p in tmp_path.rglob("*") if ".tmp" in p.name]


@pytest.mark.slow
def test_killed_at_every_call_of_the_run(whole, tmp_path):
    for at in range(1, 85):
        run_dir = tmp_path / str(at)
        assert exit_code(start(jobs.job_die, run_dir, 6, at)) == -signal.SIGKILL
        assert exit_code(start(jobs.job_train, run_dir, 6)) == 0
        assert_same_run(run_dir, whole)


def killed_at_random(run_dir, iterations, trials, generator):
    """Begin the run over and over, each time killed after a random delay; how many kills hit a living process."""
    hits = 0
    for _ in range(trials):
        process = start(jobs.job_train, run_dir, iterations)
        time.sleep(generator.uniform(0.05, 0.5))
        hits += process.is_alive()
        process.kill()
        process.join()
    assert exit_code(start(jobs.job_train, run_dir, iterations)) == 0
    return hits


def test_killed_at_random_moments(tmp_path):
    assert exit_code(start(jobs.job_train, tmp_path / "whole", 60)) == 0
    assert killed_at_random(tmp_path / "killed", 60, 6, random.Random(0)) >= 2
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_many_random_moments(tmp_path):
    assert exit_code(start(jobs.job_train, tmp_path / "whole", 150)) == 0
    hits = sum(killed_at_random(tmp_path / f"{k}", 150, 10, random.Random(k)) for k in range(4))
    assert hits >= 20
    for k in range(4):
        assert_same_run(tmp_path / f"{k}", tmp_path / "whole")


class Signalled:
    """An algorithm whose ``step`` number ``when`` sends its own process a signal, in the middle."""

    def __init__(self, inner, when, signum):
        self.inner, self.when, self.signum, self.steps = inner, when, signum, 0
        self.inference, self.state_dict, self.load_state_dict = inner.inference, inner.state_dict, inner.load_state_dict
        self.setup = inner.setup

    @property
    def explorer(self):
        return self.inner.explorer

    def step(self):
        self.steps += 1
        if self.steps == self.when:
            signal.raise_signal(self.signum)
        return self.inner.step()


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_signal_in_a_step_finishes_it_and_saves(whole, tmp_path, signum, code):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    algorithm, family = tiny()
    with pytest.raises(Interrupted, match=f"stopped by {signum.name}") as caught:
        tiny_train(tmp_path, 6, (Signalled(algorithm, 3, signum), family), saving=Saving(0, 0))
    assert caught.value.exit_code == code
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == handlers
    assert state(tmp_path)["iteration"] == len(lines(tmp_path)) == 3
    tiny_train(tmp_path, 6)
    assert_same_run(tmp_path, whole)


def test_signal_in_an_evaluation_puts_it_off(whole, tmp_path, monkeypatch):
    from bayesmeta import train as loop

    evaluate = loop.evaluate

    def interrupted(*args, **kwargs):
        found = evaluate(*args, **kwargs)
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the evaluation went on after the signal")
        return found

    monkeypatch.setattr(loop, "evaluate", interrupted)
    with pytest.raises(Interrupted, match="SIGTERM"):
        tiny_train(tmp_path, 6)
    assert state(tmp_path)["iteration"] == 2 and not lines(tmp_path, "evaluation/returns.jsonl")
    monkeypatch.undo()
    tiny_train(tmp_path, 6)
    assert_same_run(tmp_path, whole)


def test_signal_in_the_last_evaluation_leaves_the_run_undone(tmp_path, monkeypatch):
    from bayesmeta import train as loop

    monkeypatch.setattr(loop, "evaluate", lambda *a, **k: signal.raise_signal(signal.SIGUSR1))
    with pytest.raises(Interrupted):
        tiny_train(tmp_path, 1)
    assert not (tmp_path / "done").exists()
    monkeypatch.undo()
    assert len(tiny_train(tmp_path, 1).returns) == 2
    assert (tmp_path / "done").exists()


def test_signal_in_setup_stops_at_once(tmp_path, monkeypatch):
    algorithm, family = tiny()
    monkeypatch.setattr(algorithm, "setup", lambda family, seed: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        tiny_train(tmp_path, 6, (algorithm, family))
    assert not (tmp_path / "checkpoints").exists()


def test_damaged_newest_falls_back(whole, tmp_path):
    tiny_train(tmp_path, 4)
    newest = checkpoint.entries(tmp_path / "checkpoints")[0]
    assert newest.name == "iteration-000000004"
    file = newest / "algorithm.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match="damaged checkpoint: algorithm: .* bytes, expected"):
        tiny_train(tmp_path, 6)
    assert_same_run(tmp_path, whole)


def test_no_sound_checkpoint_is_an_error_and_nothing_is_lost(tmp_path):
    tiny_train(tmp_path, 2)
    for path in checkpoint.entries(tmp_path / "checkpoints"):
        (path / "rng.safetensors").unlink()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with (
        pytest.raises(checkpoint.CheckpointError, match=r"no checkpoint in .* can be read; the newest: rng: "),
        pytest.warns(RuntimeWarning, match="damaged"),
    ):
        tiny_train(tmp_path, 6)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_another_algorithms_checkpoint_is_refused(tmp_path):
    tiny_train(tmp_path, 1)
    with pytest.raises(checkpoint.CheckpointError, match=r"iteration-000000001 does not fit PEARL as configured here"):
        tiny_train(tmp_path, 2, tiny(latent_dim=3))


def test_resume_says_what_is_expected_of_the_folder(tmp_path):
    with pytest.raises(ConfigError, match="resume = must: there is no checkpoint"):
        tiny_train(tmp_path, 2, resume="must")
    with pytest.raises(ValueError, match="needs the run_dir"):
        tiny_train(None, 2, resume="must")
    tiny_train(tmp_path, 1, config={"lr": 1e-3, "iterations": 1})
    with pytest.raises(ConfigError, match=r"resume = never: .* holds a run"):
        tiny_train(tmp_path, 2, resume="never")
    with pytest.raises(ConfigError, match=r"lr = 0.01: the run in this folder was begun with 0.001"):
        tiny_train(tmp_path, 2, config={"lr": 1e-2, "iterations": 2})
    assert tiny_train(tmp_path, 2, resume="must", config={"lr": 1e-3, "iterations": 2}).iteration == 2


def test_one_process_at_a_time(tmp_path):
    from bayesmeta.folder import RunFolder

    with RunFolder(tmp_path).lock(), pytest.raises(ConfigError, match="another process is running in it"):
        tiny_train(tmp_path, 1)


def test_times_go_on_across_sessions(tmp_path):
    first = tiny_train(tmp_path, 2)
    second = tiny_train(tmp_path, 4)
    assert 0 < first.cpu_seconds < second.cpu_seconds
    assert 0 < first.wall_seconds < second.wall_seconds


@pytest.mark.gpu
def test_resumes_bit_exactly_on_cuda(tmp_path):
    def session(run_dir, iterations):
        tiny_train(run_dir, iterations, tiny(device="cuda"), device="cuda")

    session(tmp_path / "whole", 4)
    session(tmp_path / "parts", 2)
    session(tmp_path / "parts", 4)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    assert len(state(tmp_path / "whole")["rng"]["cuda"]) >= 1
