"""Checkpoints that survive a crash and cannot run code.

A checkpoint is a folder ``iteration-<n>`` of one safetensors file per component (tensors raw, everything else as JSON
in the header: no pickle anywhere) and a ``manifest.json`` with their sizes and sha256, written last. The folder is
filled under a temporary name beside its final one, every file and folder is fsynced, and a rename publishes it: it is
there whole or not at all. Older ones are deleted only after that.
"""

import errno
import hashlib
import json
import math
import os
import random
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "bayesmeta checkpoint"
VERSION = 1
_FOLDER = re.compile(r"iteration-(\d{9,})")
_COMPONENT = re.compile(r"[a-z_]{1,40}")
_TEMPORARY = ".tmp-"
_REPLACED = ".tmp-replaced-"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or what is on disk is not a sound one; names the file or component."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after ``iteration``: component name -> state. ``score`` is the evaluation's, if there was one."""

    path: Path
    iteration: int
    score: float | None
    components: dict[str, Any]


def save(folder: Path, iteration: int, components: dict[str, Any], score: float | None = None) -> Path:
    """Write a checkpoint into ``folder``, durable and complete once this returns.

    A component is nested dicts (string or integer keys), lists, tuples, numbers, strings, None and tensors; anything
    else is a TypeError naming where it is. Raises CheckpointError with the path and the bytes needed if the disk does
    not take it; what was there before is untouched.
    """
    encoded = {name: _encode(state, name) for name, state in components.items()}
    need = sum(t.numel() * t.element_size() + 256 for _, tensors in encoded.values() for t in tensors.values())
    need += sum(len(tree) for tree, _ in encoded.values())
    final, temporary = folder / f"iteration-{iteration:09d}", folder / f"{_TEMPORARY}{iteration:09d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_temporary(folder)
        if shutil.disk_usage(folder).free < need:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        temporary.mkdir()
        files = {name: _write(temporary / f"{name}.safetensors", *value) for name, value in encoded.items()}
        manifest = {"format": FORMAT, "version": VERSION, "iteration": iteration, "score": score, "components": files}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for name in files:  # safetensors makes files that only their owner can read
            shutil.copymode(temporary / "manifest.json", temporary / f"{name}.safetensors")
        for file in (temporary / "manifest.json", temporary):
            fsync(file)
        if final.exists():  # the same iteration again: it was damaged, or its evaluation was not done yet
            os.replace(final, folder / f"{_REPLACED}{final.name}")
        os.replace(temporary, final)
        fsync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"could not write {final}: it needs {need:,} bytes and {_free(folder)} are free ({error}); earlier "
            f"checkpoints are intact: make room and run the same command again"
        ) from error
    _remove_temporary(folder)
    return final


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, verifying structure, sizes and checksums before anything is parsed.

    Raises CheckpointError naming the component at fault. Tensors come back on the CPU. Nothing in a checkpoint can make
    code run.
    """
    manifest = read_manifest(path)
    components = {}
    for name, entry in manifest["components"].items():
        file = path / f"{name}.safetensors"
        _verify(file, entry)
        components[name] = read_component(file)
    return Checkpoint(path, manifest["iteration"], manifest["score"], components)


@contextmanager
def fitting(found: Checkpoint, algorithm: object) -> Iterator[None]:
    """What goes wrong while a sound checkpoint is put into an algorithm is a CheckpointError that says so."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        kind = type(algorithm).__name__
        raise CheckpointError(f"{found.path} does not fit {kind} as configured here: {error!r}") from error


def read_manifest(path: Path) -> dict[str, Any]:
    """The checked manifest of a checkpoint folder."""
    file = path / "manifest.json"
    try:
        if file.is_symlink() or not file.is_file() or file.stat().st_size > 1_000_000:
            raise ValueError("it is missing, a link, or too large")
        manifest = json.loads(file.read_text())
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ValueError(f"it does not say {FORMAT!r}")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not a checkpoint's manifest: {error}") from error
    if manifest.get("version") != VERSION:
        raise CheckpointError(
            f"{file}: checkpoint version {manifest.get('version')!r}, but this bayesmeta reads version {VERSION}; use "
            f"the bayesmeta that wrote it (versions.json in the run folder says which)"
        )
    iteration, score, components = (manifest.get(k) for k in ("iteration", "score", "components"))
    scored = score is None or isinstance(score, float)
    if not isinstance(iteration, int) or not scored or not isinstance(components, dict):
        raise CheckpointError(f"{file}: expected an integer iteration, a score and the components")
    for name, entry in components.items():
        if not _COMPONENT.fullmatch(name):
            raise CheckpointError(f"{file}: refused component name {name!r}: expected lower-case letters only")
        if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
            raise CheckpointError(f"{file}: component {name!r} has no checksum")
    return manifest


def entries(folder: Path) -> list[Path]:
    """The complete checkpoints of a folder, newest first."""
    found = [p for p in folder.glob("iteration-*") if _FOLDER.fullmatch(p.name) and p.is_dir() and not p.is_symlink()]
    return sorted(found, key=lambda p: int(p.name.partition("-")[2]), reverse=True)


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest sound checkpoint; a damaged one is passed over with a warning that names what is wrong with it.

    None if there is no checkpoint; raises CheckpointError if there are some and none is sound.
    """
    for path in folder.glob(f"{_REPLACED}*"):  # a crash between taking the old one away and publishing the new one
        if not (original := folder / path.name.removeprefix(_REPLACED)).exists():
            os.replace(path, original)
    faults = []
    for path in entries(folder):
        try:
            return load(path)
        except CheckpointError as fault:
            faults.append(fault)
            warnings.warn(f"passed over a damaged checkpoint: {fault}", RuntimeWarning, stacklevel=2)
    if faults:
        raise CheckpointError(f"no checkpoint in {folder} can be read; the newest: {faults[0]}") from faults[0]
    return None


def best(folder: Path) -> Path | None:
    """The checkpoint with the highest evaluation score, the earliest of equals; None if none was evaluated."""
    scores = _scores(folder)
    return max(reversed(entries(folder)), key=lambda p: scores.get(p, -math.inf)) if scores else None


def rotate(folder: Path, keep: int) -> None:
    """Delete all but the last ``keep`` checkpoints and the best."""
    kept = {*entries(folder)[:keep], best(folder)}
    for path in entries(folder):
        if path not in kept:
            os.replace(path, folder / f"{_TEMPORARY}{path.name}")  # a half-deleted one must not look like one
    _remove_temporary(folder)


def _scores(folder: Path) -> dict[Path, float]:
    scores = {}
    for path in entries(folder):
        try:
            score = read_manifest(path)["score"]
        except CheckpointError:
            continue
        if score is not None:
            scores[path] = score
    return scores


def write_component(file: Path, state: Any) -> None:
    """One component's file by itself, as :func:`read_component` reads it."""
    _write(file, *_encode(state, file.stem))


def read_component(file: Path) -> Any:
    """The state in one component's file. Raises CheckpointError if it is not one."""
    try:
        with safe_open(file, framework="pt") as source:
            tree = json.loads((source.metadata() or {})["tree"])
            tensors = {key: source.get_tensor(key) for key in source.keys()}  # noqa: SIM118
        return _decode(tree, tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file.stem}: {file} is not a component this library wrote: {error!r}") from error


def _write(file: Path, tree: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    save_file(tensors, file, metadata={"tree": tree})
    fsync(file)
    return {"bytes": file.stat().st_size, "sha256": _sha256(file)}


def _verify(file: Path, entry: dict[str, Any]) -> None:
    if file.is_symlink() or not file.is_file():
        raise CheckpointError(f"{file.stem}: {file} is missing or a link")
    if file.stat().st_size != entry.get("bytes"):
        raise CheckpointError(f"{file.stem}: {file} has {file.stat().st_size} bytes, expected {entry.get('bytes')}")
    if _sha256(file) != entry["sha256"]:
        raise CheckpointError(f"{file.stem}: the sha256 of {file} is not the manifest's: it was damaged or changed")


def _sha256(file: Path) -> str:
    with open(file, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Make a file's content, or a folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_temporary(folder: Path) -> None:
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free:,}"
    except OSError:
        return "no bytes that could be counted"


def _encode(state: Any, name: str) -> tuple[str, dict[str, Tensor]]:
    """The state as JSON with every tensor replaced by its index, and the tensors."""
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()

    def visit(value: Any, where: str) -> Any:
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, Tensor):
            key = str(len(tensors))
            whole = value.detach().cpu().contiguous()
            pointer = whole.untyped_storage().data_ptr()
            # Two views of one memory are refused by the format; their contents are what counts.
            tensors[key] = whole.clone() if pointer in storages else whole
            storages.add(pointer)
            return {"tensor": key}
        if type(value) in (list, tuple):
            items = [visit(item, f"{where}[{i}]") for i, item in enumerate(value)]
            return items if type(value) is list else {"tuple": items}
        if isinstance(value, dict) and all(type(key) in (str, int) for key in value):
            return {"dict": [[key, visit(item, f"{where}.{key}")] for key, item in value.items()]}
        raise TypeError(
            f"state_dict: `{where}` is a {type(value).__name__}; expected tensors, numbers, strings, None, lists, "
            f"tuples, and dicts with string or integer keys"
        )

    return json.dumps(visit(state, name)), tensors


def _decode(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_decode(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "float":
        return float(value)
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in value)
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in value}
    raise ValueError(f"unknown node {kind!r}")


def rng_state() -> dict[str, Any]:
    """The state of every global random stream: Python's, NumPy's, torch's on the CPU and on each CUDA device."""
    numpy: Any = np.random.get_state(legacy=True)
    name, keys, *rest = numpy
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what :func:`rng_state` gave. The last thing that is restored, since building things draws numbers."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
