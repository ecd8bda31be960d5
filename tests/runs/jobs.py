"""What the tests of this folder run, also in processes of their own.

Processes that are killed come from a fork server that has imported everything: one costs a fraction of a second.
"""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayesmeta import checkpoint
from bayesmeta.algorithms.pearl import PEARL
from bayesmeta.cli import main
from bayesmeta.logging import TIME_FIELDS
from bayesmeta.tasks.point_goal import PointGoal
from bayesmeta.train import Evaluating, Saving, Summary, seeded, train

CONFIGS = Path(__file__).parent / "configs"
ROOT = Path(__file__).parents[2]
# The small setting: options of tests/runs/configs, few tasks to evaluate on, a checkpoint after every iteration.
TINY = ["--config-dir", str(CONFIGS), "algorithm=tiny", "task=short", "threads=1", "tensorboard=false"]
TINY += [
    "progress=lines",
    "eval.every=2",
    "eval.tasks=3",
    "eval.episodes=2",
    "checkpoint.every=1",
    "checkpoint.seconds=0",
]


def tiny(**changes: Any) -> tuple[PEARL, PointGoal]:
    """A PEARL of a few hundred weights and its task family; the same weights every time."""
    family = PointGoal(horizon=5)
    sizes: dict[str, Any] = {"latent_dim": 2, "widths": (8,), "encoder_widths": (8,), "train_tasks": 4}
    sizes |= {"collect_tasks": 4, "meta_batch": 2, "rl_batch": 8, "context_batch": 8, "initial_episodes": 1}
    with seeded(0):
        return PEARL(family.spec, **(sizes | {"updates": 2} | changes)), family


def tiny_train(run_dir: Path | None, iterations: int, part: Any = None, **settings: Any) -> Summary:
    """Train the tiny agent (or ``part``, an agent and a family) with a checkpoint after every iteration."""
    algorithm, family = part or tiny()
    settings = {"evaluating": Evaluating(2, 3, 2), "saving": Saving(every=1, seconds=0)} | settings
    settings = {"progress": "quiet", "tensorboard": False} | settings
    return train(algorithm, family, iterations=iterations, run_dir=run_dir, **settings)


def cli_fresh(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """``bayesmeta ARGUMENTS`` as a process of its own from the beginning, which takes seconds to import torch."""
    return subprocess.run(
        [sys.executable, "-m", "bayesmeta.cli", *arguments],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
        capture_output=True,
        text=True,
        timeout=300,
    )


class Command:
    """``bayesmeta ARGUMENTS`` in a process of the fork server; ``stdout`` and ``stderr`` are what it has said so far.

    ``largest`` is the largest file in bytes that the kernel lets it write.
    """

    def __init__(self, *arguments: str, cwd: Path, largest: int | None = None) -> None:
        self._said = Path(tempfile.mkdtemp(prefix="command-"))
        self.process = start(job_cli, arguments, cwd, self._said, largest)

    @property
    def stdout(self) -> str:
        return (self._said / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self._said / "stderr").read_text()

    def wait(self, timeout: float = 300) -> int:
        return exit_code(self.process, timeout)


def cli(*arguments: str, cwd: Path, largest: int | None = None) -> Command:
    """Run a command to its end."""
    command = Command(*arguments, cwd=cwd, largest=largest)
    command.wait()
    return command


def job_cli(arguments: tuple[str, ...], cwd: Path, said: Path, largest: int | None) -> None:
    """What the console script does, with its output in files."""
    os.chdir(cwd)
    for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT), stream.fileno())
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    sys.argv = ["bayesmeta", *arguments]
    main()


def start(job: Callable[..., None], *arguments: Any) -> Any:
    """Run ``job(*arguments)`` in a new process of the fork server."""
    context = multiprocessing.get_context("forkserver")
    modules = ["cli", "runs", "algorithms.pearl", "tasks.point_goal"]
    context.set_forkserver_preload(["torch._dynamo", *(f"bayesmeta.{name}" for name in modules)])
    process = context.Process(target=job, args=arguments)
    process.start()
    return process


def exit_code(process: Any, timeout: float = 300) -> int:
    process.join(timeout)
    assert process.exitcode is not None, "the process does not end"
    return process.exitcode


def job_train(run_dir: Path, iterations: int) -> None:
    torch.set_num_threads(1)
    tiny_train(run_dir, iterations)


def job_die(run_dir: Path, iterations: int, at: int) -> None:
    """Train, and be killed on entering the ``at``-th system call of a save that changes the disk."""
    torch.set_num_threads(1)
    count = 0

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for module, name in ((os, "fsync"), (os, "replace"), (shutil, "rmtree"), (checkpoint, "save_file")):
        setattr(module, name, dying(getattr(module, name)))
    tiny_train(run_dir, iterations)


def lines(run_dir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """A run's JSON lines without their time fields."""
    records = [json.loads(line) for line in (run_dir / name).read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIME_FIELDS} for record in records]


def state(run_dir: Path) -> dict[str, Any]:
    """What the newest checkpoint of a run holds, without its time fields.

    Without Python's random stream too: the library does not draw from it, but beartype does in the tests' own process.
    """
    found = checkpoint.load(checkpoint.entries(run_dir / "checkpoints")[0])
    found.components["rng"].pop("python")
    loop = {key: value for key, value in found.components["loop"].items() if key not in TIME_FIELDS}
    return found.components | {"loop": loop, "iteration": found.iteration}


def difference(a: Any, b: Any, where: str = "") -> str | None:
    """Where two states differ in a single bit, or None."""
    if type(a) is not type(b):
        return f"{where}: {type(a)} and {type(b)}"
    if isinstance(a, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        return None if same else where
    if isinstance(a, dict):
        if list(a) != list(b):
            return f"{where}: keys {list(a)} and {list(b)}"
        found = (difference(a[key], b[key], f"{where}.{key}") for key in a)
        return next((f for f in found if f), None)
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return f"{where}: lengths {len(a)} and {len(b)}"
        found = (difference(x, y, f"{where}[{i}]") for i, (x, y) in enumerate(zip(a, b, strict=True)))
        return next((f for f in found if f), None)
    return None if a == b else f"{where}: {a!r} and {b!r}"


def assert_same_run(a: Path, b: Path) -> None:
    """Two runs ended with the same state and wrote the same metrics and evaluations, bit for bit."""
    for name in ("metrics.jsonl", "evaluation/returns.jsonl"):
        found = difference(lines(a, name), lines(b, name))
        assert found is None, found
    found = difference(state(a), state(b))
    assert found is None, found
