"""What a run writes and shows."""

import json
import re

import pytest

from bayesmeta import logging
from bayesmeta.folder import RunFolder
from bayesmeta.logging import JsonLines, Progress, TensorBoard
from bayesmeta.train import Evaluating
from tests.runs import jobs
from tests.runs.jobs import lines, tiny_train


def test_lines_past_the_checkpoint_are_cut_off(tmp_path):
    file = tmp_path / "m.jsonl"
    log = JsonLines(file, 0)
    for iteration in (1, 2, 3):
        log.write({"iteration": iteration, "x": 0.1})
    log.close()
    whole = file.read_bytes().splitlines(keepends=True)
    JsonLines(file, 2).close()
    assert file.read_bytes() == b"".join(whole[:2])


@pytest.mark.parametrize("tail", [b'{"iteration": 3, "x"', b'{"iteration": 3}', b"\0\0\0\n", b"[1]\n", b'{"a": 1}\n'])
def test_a_line_cut_by_a_crash_is_dropped(tmp_path, tail):
    file = tmp_path / "m.jsonl"
    good = b'{"iteration": 1}\n{"iteration": 2}\n'
    file.write_bytes(good + tail)
    JsonLines(file, 9).close()
    assert file.read_bytes() == good


def test_a_line_is_on_disk_when_written_and_must_be_finite(tmp_path):
    log = JsonLines(tmp_path / "m.jsonl", 0)
    log.write({"iteration": 1, "x": 0.1})
    assert (tmp_path / "m.jsonl").read_text() == '{"iteration": 1, "x": 0.1}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.write({"iteration": 2, "x": float("nan")})
    log.close()


def test_a_full_disk_names_the_file():
    class Full:
        def write(self, data):
            raise OSError(28, "No space left on device")

    log = JsonLines.__new__(JsonLines)
    log.path, log._file = "runs/m.jsonl", Full()
    with pytest.raises(OSError, match=r"could not append 2\d bytes: No space left on device: 'runs/m.jsonl'"):
        log.write({"iteration": 1000000})


def test_tensorboard_holds_the_metrics(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tiny_train(tmp_path, 2, tensorboard=True)
    tiny_train(tmp_path, 4, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    written = [(e.step, pytest.approx(e.value)) for e in events.Scalars("train/critic_loss")]
    assert written == [(line["iteration"], line["critic_loss"]) for line in lines(tmp_path)]
    assert [e.step for e in events.Scalars("test/return_episode_2")] == [2, 4]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("plain")
    tiny_train(run_dir, 3)
    return run_dir


def test_unwritable_tensorboard_is_one_warning(tmp_path, plain):
    (tmp_path / "tensorboard").write_text("a file is in the way")
    with pytest.warns(RuntimeWarning, match="no TensorBoard from here on") as caught:
        tiny_train(tmp_path, 3, tensorboard=True)
    assert len(caught) == 1
    jobs.assert_same_run(tmp_path, plain)


def test_tensorboard_that_fails_later_is_one_warning(tmp_path, plain, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    def fail(self, name, value, step):
        if step == 2:
            raise OSError("gone")

    monkeypatch.setattr(SummaryWriter, "add_scalar", fail)
    with pytest.warns(RuntimeWarning, match="metrics.jsonl is complete: OSError") as caught:
        tiny_train(tmp_path, 3, tensorboard=True)
    assert len(caught) == 1
    jobs.assert_same_run(tmp_path, plain)


def test_tensorboard_that_is_not_installed_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.warns(RuntimeWarning, match="no TensorBoard from here on"):
        TensorBoard(tmp_path, 0).write(1, {"x": 1.0})


def test_plain_lines_where_there_is_no_terminal(capsys):
    tiny_train(None, 3, progress="auto", evaluating=Evaluating(3, 2, 2))
    out, err = capsys.readouterr()
    assert re.search(r"^iteration 1/3: env_steps 60, .* \(0:0\d left\)$", out, re.MULTILINE)
    assert re.search(r"^iteration 3/3: ", out, re.MULTILINE)
    assert re.search(r"^iteration 3: test return by episode -[\d.]+ -[\d.]+$", out, re.MULTILINE)
    assert "\r" not in out and not err


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(logging.sys.stderr, "isatty", lambda: True)
    tiny_train(None, 3, progress="auto", evaluating=Evaluating(3, 2, 2))
    out, err = capsys.readouterr()
    assert "3/3 [" in err and "env_steps" in err and "test return by episode" in err
    assert not out


def test_quiet_says_nothing(capsys):
    tiny_train(None, 3, progress="quiet")
    assert capsys.readouterr() == ("", "")


def test_lines_are_seconds_apart(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(logging.time, "monotonic", lambda: now[0])
    progress = Progress("lines", 7300, 0)
    for iteration in range(1, 101):
        now[0] += 1.0
        progress.step(iteration, {"loss": 1.0})
    shown = [int(line.split()[1].split("/")[0]) for line in capsys.readouterr().out.splitlines()]
    assert shown == list(range(1, 101, 5))
    now[0] += 1.0
    progress.step(101, {"loss": 0.123456})
    progress.close()
    assert capsys.readouterr().out == "iteration 101/7300: loss 0.1235 (1:59:59 left)\n"


def test_a_run_folder_holds_what_reproduces_it(tmp_path):
    import platform

    import torch

    tiny_train(tmp_path, 2, config={"seed": 0, "algorithm": {"lr": 1e-3}})
    tiny_train(tmp_path, 3, config={"seed": 0, "algorithm": {"lr": 1e-3}})
    folder = RunFolder(tmp_path)
    assert folder.read_config() == {"seed": 0, "algorithm": {"lr": 1e-3}}
    sessions = json.loads(folder.versions.read_text())
    assert len(sessions) == 2
    assert sessions[1]["torch"] == torch.__version__ and sessions[1]["python"] == platform.python_version()
    assert sessions[1]["pyro-ppl"] and sessions[1]["mujoco"] and "git" in sessions[1] and sessions[1]["command"]
    assert [line["iteration"] for line in lines(tmp_path)] == [1, 2, 3]
    done = json.loads(folder.done.read_text())
    assert done["iteration"] == 3 and len(done["returns"]) == 2 and done["cpu_seconds"] > 0
    assert folder.finished(3) and not folder.finished(4)


def test_another_torch_is_said_on_resuming(tmp_path):
    tiny_train(tmp_path, 1)
    file = tmp_path / "versions.json"
    sessions = json.loads(file.read_text())
    file.write_text(json.dumps([sessions[0] | {"torch": "2.10.0"}]))
    with pytest.warns(RuntimeWarning, match=r"begun under torch 2\.10\.0 and continued under .*: not bit for bit"):
        tiny_train(tmp_path, 2)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"iteration": "3"}'])
def test_a_spoilt_done_marker_is_not_done(tmp_path, text):
    (tmp_path / "done").write_text(text)
    assert not RunFolder(tmp_path).finished(1)
