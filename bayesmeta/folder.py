"""A run's folder: what is in it, who is writing it, and whether there is anything left to do. Imports nothing heavy.

=====================  =====================================================================
``config.yaml``        the resolved configuration
``versions.json``      one entry per session: versions, git hash, command
``metrics.jsonl``      one line per iteration
``evaluation/``        ``returns.jsonl``, one line per evaluation; what ``bayesmeta evaluate`` wrote
``checkpoints/``       see :mod:`bayesmeta.checkpoint`
``tensorboard/``       event files
``nan-<iteration>/``   what reproduces a stop on a non-finite value
``done``               written last, by a run that reached its end
=====================  =====================================================================
"""

import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bayesmeta.config import ConfigError, same_run

PACKAGES = ("bayesmeta", "torch", "pyro-ppl", "mujoco", "gymnasium", "numpy", "arviz", "hydra-core", "safetensors")


class RunFolder:
    """Paths and small files of one run. Making one writes nothing."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        self.config = self.path / "config.yaml"
        self.versions = self.path / "versions.json"
        self.metrics = self.path / "metrics.jsonl"
        self.evaluation = self.path / "evaluation"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.done = self.path / "done"

    def begun(self) -> bool:
        """Whether a run has saved anything to continue from."""
        return any(self.checkpoints.glob("iteration-*"))

    def finished(self, iterations: int) -> bool:
        """Whether a run of at least this length has ended here."""
        try:
            return json.loads(self.done.read_text())["iteration"] >= iterations
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def check(self, resume: str, config: dict[str, Any] | None = None) -> None:
        """Raise ConfigError if ``resume`` (auto, never, must) or the configuration does not fit the folder."""
        if resume == "never" and (self.begun() or self.metrics.exists()):
            raise ConfigError(
                f"resume = never: {self.path} holds a run; use resume=auto, another run_dir, or remove it"
            )
        if resume == "must" and not self.begun():
            raise ConfigError(f"resume = must: there is no checkpoint in {self.checkpoints}; use resume=auto to begin")
        if config is not None and self.config.exists() and self.begun():
            same_run(self.read_config(), config)

    def read_config(self) -> dict[str, Any]:
        """The stored configuration."""
        from omegaconf import OmegaConf

        if not self.config.is_file():
            raise ConfigError(f"{self.path} is no run folder: it has no config.yaml")
        stored = OmegaConf.to_container(OmegaConf.load(self.config))
        if not isinstance(stored, dict):
            raise ConfigError(f"{self.config}: expected keys and values")
        return stored  # type: ignore[return-value]

    def write_session(self, config: dict[str, Any] | None) -> None:
        """Store the configuration and add this session to ``versions.json``."""
        if config is not None:
            from omegaconf import OmegaConf

            write_atomically(self.config, OmegaConf.to_yaml(OmegaConf.create(config)))
        sessions = json.loads(self.versions.read_text()) if self.versions.exists() else []
        now = session_versions()
        if self.begun() and sessions and sessions[-1].get("torch") != now["torch"]:
            text = f"begun under torch {sessions[-1].get('torch')} and continued under {now['torch']}: not bit for bit"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        write_atomically(self.versions, json.dumps([*sessions, now], indent=1) + "\n")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process that writes here; the lock goes with the process, however it ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigError(f"run_dir = {self.path}: another process is running in it") from error
            yield


def session_versions() -> dict[str, Any]:
    """Versions of everything that decides a run's numbers, found without importing any of it."""
    versions: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {**versions, "git": _git_hash(), "command": sys.orig_argv}


def _git_hash() -> str | None:
    """The commit of the checkout this package lies in, ``+changes`` if it was edited; None outside one."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, timeout=5
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A virtual environment may lie inside somebody else's repository: only one that tracks this package counts.
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    head = git("rev-parse", "HEAD")
    return f"{head}+changes" if head and git("status", "--porcelain", "--untracked-files=no") else head


def write_atomically(file: Path, text: str) -> None:
    """Replace a small file so that it is always whole."""
    temporary = file.with_name(f".tmp-{file.name}")
    with open(temporary, "w") as target:
        target.write(text)
        target.flush()
        os.fsync(target.fileno())
    os.replace(temporary, file)
