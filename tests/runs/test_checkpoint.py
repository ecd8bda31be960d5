"""Checkpoints: nothing is lost, nothing is executed, and what is wrong is named."""

import json
import os
import pickle
import random
import re
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bayesmeta import checkpoint
from bayesmeta.checkpoint import CheckpointError, best, entries, load, load_latest, rotate, save
from tests.runs.jobs import difference

STATE = {"net": {"w": torch.arange(12.0).reshape(3, 4)}, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}}


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints of iterations 1 and 2."""
    for iteration in (1, 2):
        save(tmp_path, iteration, {"algorithm": STATE | {"iteration": iteration}, "rng": checkpoint.rng_state()})
    return tmp_path


def newest(folder):
    return entries(folder)[0]


def refused(folder, match):
    """The newest checkpoint is refused with this message, and the one before is used instead."""
    with pytest.raises(CheckpointError, match=match):
        load(newest(folder))
    with pytest.warns(RuntimeWarning, match=match):
        assert load_latest(folder).iteration == 1


def resign(path, name="algorithm"):
    """Make the manifest agree with a component that was replaced, as an attacker would."""
    manifest = json.loads((path / "manifest.json").read_text())
    file = path / f"{name}.safetensors"
    manifest["components"][name] = {"bytes": file.stat().st_size, "sha256": checkpoint._sha256(file)}
    (path / "manifest.json").write_text(json.dumps(manifest))


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)).map(torch.from_numpy),
    hnp.arrays(np.bool_, hnp.array_shapes(max_dims=2, max_side=3)).map(torch.from_numpy),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    ),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None)
@given(trees)
def test_any_state_comes_back_to_the_bit(tmp_path_factory, tree):
    path = save(tmp_path_factory.mktemp("c"), 0, {"x": tree})
    assert difference(load(path).components["x"], tree) is None


def test_tensors_of_every_kind_come_back(tmp_path):
    base = torch.randn(6, 4)
    state = {
        "view": base.t(),
        "part": base[1:3],
        "same": base,
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
        "float": [float("inf"), -float("inf")],
        "ints": torch.arange(3),
        "bytes": torch.get_rng_state(),
        "grad": torch.ones(2, requires_grad=True),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": [torch.zeros(0, 3), torch.zeros(2, 0)],
    }
    found = load(save(tmp_path, 3, {"x": state})).components["x"]
    assert difference(found, {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in state.items()}) is None
    half = torch.randn(5).bfloat16()
    assert torch.equal(load(save(tmp_path, 4, {"x": half})).components["x"], half)


def test_a_nan_number_comes_back(tmp_path):
    value = load(save(tmp_path, 0, {"x": [float("nan")]})).components["x"][0]
    assert value != value


def test_random_streams_continue(saved):
    def draws():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(3).tolist()

    np.random.randn()  # leaves a cached normal behind, which is state too
    state = checkpoint.rng_state()
    path = save(saved, 9, {"rng": state})
    first = draws()
    checkpoint.set_rng_state(load(path).components["rng"])
    assert draws() == first != draws()
    checkpoint.set_rng_state(state)


@pytest.mark.parametrize(
    "value, where", [({"a": [np.float64(1)]}, r"x\.a\[0\]` is a float64"), ({"b": {1.5: 0}}, r"x\.b` is a dict")]
)
def test_what_cannot_be_saved_is_named(tmp_path, value, where):
    with pytest.raises(TypeError, match=where):
        save(tmp_path, 0, {"x": value})
    assert not list(tmp_path.iterdir())


def test_last_and_best_are_kept(tmp_path):
    for iteration, score in enumerate([None, 1.0, 5.0, 2.0, 5.0, None, 3.0]):
        save(tmp_path, iteration, {"x": 0}, score)
        rotate(tmp_path, keep=2)
    assert [p.name for p in entries(tmp_path)] == [f"iteration-{k:09d}" for k in (6, 5, 2)]
    assert best(tmp_path) == tmp_path / "iteration-000000002"  # the earliest of equals
    assert load(best(tmp_path)).score == 5.0


def test_every_file_is_as_readable_as_any_other_of_the_run(saved):
    (saved / "other").touch()
    assert {f.stat().st_mode for f in newest(saved).iterdir()} == {(saved / "other").stat().st_mode}


def test_no_checkpoint_is_none(tmp_path):
    assert load_latest(tmp_path / "none") is None and best(tmp_path) is None


def test_same_iteration_again_survives_a_crash_between_its_two_renames(saved, monkeypatch):
    calls = []

    def crash(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(source, target)

    rename = os.replace
    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save(saved, 2, {"algorithm": 0})
    monkeypatch.undo()
    assert [p.name for p in entries(saved)] == ["iteration-000000001"]
    assert load_latest(saved).iteration == 2
    save(saved, 3, {"algorithm": 0})
    assert sorted(p.name for p in saved.iterdir()) == [f"iteration-00000000{k}" for k in (1, 2, 3)]


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_truncated(saved, keep):
    file = newest(saved) / "algorithm.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(saved, r"algorithm: .* bytes, expected")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 7), st.sampled_from(["algorithm", "rng"]))
def test_every_flipped_bit_is_found(tmp_path_factory, position, bit, name):
    folder = tmp_path_factory.mktemp("c")
    path = save(folder, 1, {"algorithm": STATE, "rng": checkpoint.rng_state()})
    file = path / f"{name}.safetensors"
    data = bytearray(file.read_bytes())
    data[position % len(data)] ^= 1 << bit
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name}: the sha256 of .* it was damaged or changed"):
        load(path)


def test_missing_component(saved):
    (newest(saved) / "rng.safetensors").unlink()
    refused(saved, "rng: .* is missing or a link")


def test_linked_component(saved, tmp_path_factory):
    file = newest(saved) / "rng.safetensors"
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "rng.safetensors"
    shutil.move(file, elsewhere)
    file.symlink_to(elsewhere)
    refused(saved, "rng: .* is missing or a link")


@pytest.mark.parametrize(
    "text, match",
    [
        ("", "not a checkpoint's manifest"),
        ("[" * 100_000, "not a checkpoint's manifest"),
        ("[]", "does not say 'bayesmeta checkpoint'"),
        ('{"format": "something else"}', "does not say 'bayesmeta checkpoint'"),
        ('{"format": "bayesmeta checkpoint", "version": 2}', r"version 2, but this bayesmeta reads version 1; use"),
        ('{"format": "bayesmeta checkpoint", "version": 1}', "expected an integer iteration"),
        (" " * 1_000_001, "too large"),
    ],
)
def test_bad_manifest(saved, text, match):
    (newest(saved) / "manifest.json").write_text(text)
    refused(saved, match)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b", "", "a.b", "A", "x" * 50, "a\n"])
def test_path_in_manifest(saved, name):
    file = newest(saved) / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["components"][name] = manifest["components"].pop("rng")
    file.write_text(json.dumps(manifest))
    refused(saved, "refused component name")


class Hostile:
    """Unpickling one makes a folder."""

    def __init__(self, sentinel):
        self.sentinel = str(sentinel)

    def __reduce__(self):
        return os.mkdir, (self.sentinel,)


def bomb(file):
    """A zip of a few kilobytes that inflates to a hundred megabytes, under the names that torch.load reads."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", b"\0" * 100_000_000)


def test_hostile_component_is_not_executed(saved, tmp_path_factory):
    sentinel = tmp_path_factory.mktemp("s") / "sentinel"
    path = newest(saved)
    file = path / "algorithm.safetensors"
    attacks = {
        "pickle": lambda: file.write_bytes(pickle.dumps(Hostile(sentinel))),
        "torch": lambda: torch.save({"x": Hostile(sentinel)}, file),
        "zip": lambda: bomb(file),
        "huge header": lambda: file.write_bytes((2**62).to_bytes(8, "little") + b"{}"),
        "no tree": lambda: file.write_bytes(checkpoint_bytes({"t": [0, 0]}, {})),
        "deep tree": lambda: file.write_bytes(checkpoint_bytes({}, {"tree": "[" * 100_000})),
        "unknown node": lambda: file.write_bytes(checkpoint_bytes({}, {"tree": '{"call": "os.system"}'})),
        "tensor that is not there": lambda: file.write_bytes(checkpoint_bytes({}, {"tree": '{"tensor": "0"}'})),
        "tensor past the end": lambda: file.write_bytes(checkpoint_bytes({"0": [0, 2**50]}, {"tree": "0"})),
        "unhashable key": lambda: file.write_bytes(checkpoint_bytes({}, {"tree": '{"dict": [[[], 1]]}'})),
    }
    for name, attack in attacks.items():
        attack()
        resign(path)
        before = time.process_time()
        refused(saved, "algorithm: .* is not a component this library wrote")
        assert time.process_time() - before < 1.0, name
    assert not sentinel.exists()
    pickle.loads(pickle.dumps(Hostile(sentinel)))  # the attack does work on who falls for it
    assert sentinel.exists()


def checkpoint_bytes(tensors, metadata):
    """A safetensors file by hand: float32 tensors with the given byte ranges."""
    header = {k: {"dtype": "F32", "shape": [(b - a) // 4], "data_offsets": [a, b]} for k, (a, b) in tensors.items()}
    text = json.dumps(header | {"__metadata__": metadata}).encode()
    return len(text).to_bytes(8, "little") + text


def test_a_committed_checkpoint_of_version_1_loads():
    """Written once by this format's first version; what can no longer be read must say so by its version."""
    found = load(Path(__file__).parent / "v1" / "iteration-000000007")
    expected = {"w": torch.arange(6.0).reshape(2, 3), "flags": torch.tensor([True, False]), "list": [1, 2.5, None, "x"]}
    expected |= {"tuple": (float("inf"), {0: {"step": 3}})}
    assert (found.iteration, found.score) == (7, -1.5)
    assert difference(found.components["algorithm"], expected) is None


def test_nothing_here_unpickles():
    for file in Path(checkpoint.__file__).parent.rglob("*.py"):
        if file.name == "array_pickle.py":  # which reads a published data set and can call nothing
            continue
        assert not re.search(r"torch\.load\(|import pickle|pickle\.|weights_only=", file.read_text()), file


def test_disk_that_is_known_to_be_too_small(saved, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(1000))
    with pytest.raises(
        CheckpointError, match=r"iteration-000000003: it needs 4,[\d,]+ bytes and 1,000 are free"
    ) as error:
        save(saved, 3, {"algorithm": torch.zeros(1000)})
    assert "earlier checkpoints are intact: make room" in str(error.value)
    assert load_latest(saved).iteration == 2 and sorted(saved.iterdir()) == sorted(entries(saved))


FULL = """
import resource, sys, torch
from pathlib import Path
from bayesmeta import checkpoint
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(folder, 3, {"small": torch.zeros(100), "algorithm": torch.zeros(100_000)})
except checkpoint.CheckpointError as error:
    print(error)
"""


def test_disk_that_fills_up_while_writing(saved):
    """The file-size limit makes the kernel refuse a write in the middle, as a full disk does."""
    done = subprocess.run([sys.executable, "-c", FULL, str(saved)], capture_output=True, text=True, timeout=120)
    assert "could not write" in done.stdout and "iteration-000000003: it needs 400," in done.stdout, done.stderr
    assert load_latest(saved).iteration == 2 and sorted(saved.iterdir()) == sorted(entries(saved))


def test_nothing_is_deleted_before_the_new_one_is_durable(saved, monkeypatch):
    events = []
    for module, name in ((os, "fsync"), (os, "replace"), (shutil, "rmtree")):
        real = getattr(module, name)

        def spy(*args, real=real, name=name, **kwargs):
            what = args[-1] if name == "replace" else args[0]
            events.append((name, os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else str(what)))
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, spy)
    save(saved, 3, {"a": STATE})
    rotate(saved, keep=1)
    temporary, final = str(saved / ".tmp-000000003"), str(saved / "iteration-000000003")
    synced = [("fsync", f"{temporary}/{name}") for name in ("a.safetensors", "manifest.json")]
    published = [*synced, ("fsync", temporary), ("replace", final), ("fsync", str(saved))]
    old = [str(saved / f".tmp-iteration-00000000{k}") for k in (2, 1)]
    taken_away = [("replace", path) for path in old]
    assert events[: len(published) + 2] == published + taken_away
    assert sorted(events[len(published) + 2 :]) == sorted(("rmtree", path) for path in old)


def test_saving_many_megabytes_needs_no_second_copy(tmp_path):
    state = {"replay": torch.randn(8_000_000)}  # 32 MB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    save(tmp_path, 0, {"algorithm": state})
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 16, f"peak memory grew by {grown:.0f} MiB"
