"""The training loop: iterate, evaluate, save, and continue bit for bit where it stopped."""

import hashlib
import json
import math
import os
import random
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from bayesmeta import checkpoint
from bayesmeta.config import ConfigError
from bayesmeta.evaluate import evaluate, predictive_curve
from bayesmeta.folder import RunFolder, write_atomically
from bayesmeta.guards import NonFiniteError, check_finite
from bayesmeta.logging import Progress, ProgressMode, RunLog
from bayesmeta.signals import Interrupted, StopRequest, stop_on_signal
from bayesmeta.types import Agent, Algorithm, ControlFamily, SupervisedFamily, TaskFamily


@dataclass(frozen=True)
class Evaluating:
    """Every ``every`` iterations (0 = never) and at the end, adapt to ``tasks`` held-out tasks.

    Agents play ``episodes`` of each. On supervised tasks the score is the mean log predictive density of ``queries``
    data, after each number of ``shots``; tasks where adaptation diverges are left out with a warning, unless all do.
    """

    every: int = 0
    tasks: int = 20
    episodes: int = 3
    shots: Sequence[int] = (1, 5, 10)
    queries: int = 20

    def stages(self, family: TaskFamily) -> list[str]:
        """What each column of an evaluation's scores is."""
        if family.spec.is_control:
            return [f"return_episode_{k + 1}" for k in range(self.episodes)]
        return [f"log_density_after_{shots}" for shots in self.shots]


@dataclass(frozen=True)
class Saving:
    """Save every ``every`` iterations and every ``seconds`` (0 = not by that), keep the last ``keep`` and the best."""

    every: int = 0
    seconds: int | float = 60
    keep: int = 2


@dataclass(frozen=True)
class Summary:
    """How a run ended. ``returns`` are the last evaluation's scores, by stage; times are of all sessions together."""

    iteration: int
    metrics: dict[str, float]
    returns: list[float]
    stages: list[str]
    best: float | None
    wall_seconds: float
    cpu_seconds: float
    run_dir: Path | None


def train(
    algorithm: Algorithm,
    family: TaskFamily,
    *,
    iterations: int,
    seed: int = 0,
    run_dir: Path | str | None = None,
    resume: Literal["auto", "never", "must"] = "auto",
    device: torch.device | str = "cpu",
    evaluating: Evaluating | None = None,
    saving: Saving | None = None,
    progress: ProgressMode = "auto",
    tensorboard: bool = True,
    config: dict[str, Any] | None = None,
) -> Summary:
    """Run ``algorithm.step`` until ``iterations`` are done in all, in this and earlier sessions of ``run_dir``.

    Without ``run_dir`` nothing is written. With one, the run continues from its newest sound checkpoint; parameters,
    optimisers, buffers, random streams and ``metrics.jsonl`` (but for its time fields) are then those of a run that was
    never interrupted. The global random streams are seeded with ``seed`` for the run and put back afterwards.

    SIGINT, SIGTERM and SIGUSR1 finish the iteration, save, and raise :class:`~bayesmeta.signals.Interrupted`. A
    non-finite metric, parameter, observation, reward, loss or gradient raises
    :class:`~bayesmeta.guards.NonFiniteError` in the same iteration and leaves ``nan-<iteration>/`` in the folder, which
    is itself a run folder that fails again in that iteration when continued; no checkpoint is written after it. Raises
    :class:`~bayesmeta.checkpoint.CheckpointError` if saving fails or nothing saved can be read, and
    :class:`~bayesmeta.config.ConfigError` if ``resume`` or ``config`` does not fit the folder.
    """
    folder = RunFolder(run_dir) if run_dir is not None else None
    if folder:
        folder.check(resume, config)
    elif resume == "must":
        raise ValueError("train: resume='must' needs the run_dir to continue")
    with ExitStack() as stack:
        if folder:
            stack.enter_context(folder.lock())
            folder.write_session(config)
        stack.enter_context(seeded(derived_seed(seed, "training")))
        run = _Run(
            algorithm, family, folder, seed, torch.device(device), evaluating or Evaluating(), saving or Saving()
        )
        run.stop = stack.enter_context(stop_on_signal())
        run.begin()
        run.log = RunLog(folder, run.iteration, run.evaluated, tensorboard)
        stack.callback(run.log.close)
        run.progress = Progress(progress, iterations, run.iteration)
        stack.callback(run.progress.close)
        run.until(iterations)
        return run.summary()


class _Run:
    """The state of one session of one run."""

    stop: StopRequest
    log: RunLog
    progress: Progress

    def __init__(
        self,
        algorithm: Algorithm,
        family: TaskFamily,
        folder: RunFolder | None,
        seed: int,
        device: torch.device,
        evaluating: Evaluating,
        saving: Saving,
    ) -> None:
        self.algorithm, self.family, self.folder = algorithm, family, folder
        self.seed, self.device, self.evaluating, self.saving = seed, device, evaluating, saving
        self.iteration = 0
        self.metrics: dict[str, float] = {}
        self.returns: list[float] = []
        self.evaluated = 0  # the iteration of the last evaluation
        self.best: float | None = None
        self.saved: int | None = None  # the iteration of the last checkpoint
        self.saved_at = time.monotonic()
        self.wall_before, self.cpu_before = 0.0, 0.0
        self.wall_began, self.cpu_began = time.monotonic(), time.process_time()

    def begin(self) -> None:
        """Set the algorithm up, then put back what was saved, the random streams last."""
        with self.guarded(), self.stop.abandonable():
            try:
                self.algorithm.setup(self.family, self.seed)
            except ValueError as error:
                raise ConfigError(str(error)) from error
        found = checkpoint.load_latest(self.folder.checkpoints) if self.folder else None
        if found is None:
            return
        with checkpoint.fitting(found, self.algorithm):
            self.algorithm.load_state_dict(found.components["algorithm"])
            loop = found.components["loop"]
            self.iteration = self.saved = found.iteration
            self.evaluated, self.best, self.returns = loop["evaluated"], loop["best"], loop["returns"]
            self.wall_before, self.cpu_before = loop["wall_seconds"], loop["cpu_seconds"]
            checkpoint.set_rng_state(found.components["rng"])

    def until(self, iterations: int) -> None:
        """The loop. It saves and heeds signals only where the state is whole: between iterations."""
        while True:
            improved = self.evaluation_due(iterations) and self.evaluate()
            if improved or self.saving_due(iterations):
                self.save()
            if self.iteration >= iterations and not self.evaluation_due(iterations):
                break
            self.stop.check()
            self.step()
        if self.folder:
            done = {"iteration": self.iteration, "returns": self.returns, "best": self.best, **self.times()}
            write_atomically(self.folder.done, json.dumps(done) + "\n")
        self.stop.check()

    def step(self) -> None:
        """One iteration; everything that it changed must be finite."""
        self.iteration += 1
        with self.guarded():
            metrics = {name: float(value) for name, value in self.algorithm.step().items()}
            for name, value in metrics.items():
                if not math.isfinite(value):
                    raise NonFiniteError(name, {name: torch.tensor(value)})
            check_finite(**parameters(self.algorithm))
        self.metrics = metrics
        self.log.metrics(self.iteration, metrics, self.times())
        self.progress.step(self.iteration, metrics)

    def evaluation_due(self, iterations: int) -> bool:
        every = self.evaluating.every
        if not every or not self.iteration or self.iteration == self.evaluated:
            return False
        return self.iteration % every == 0 or self.iteration >= iterations

    def evaluate(self) -> bool:
        """Evaluate on the run's fixed test tasks; whether the last stage's mean score is the best so far.

        A signal abandons it, and the next session makes it from the same state.
        """
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "evaluation tasks"))
        params = self.family.sample(self.evaluating.tasks, "test", generator).to(self.device)
        before = checkpoint.rng_state()
        try:
            with self.guarded(), self.stop.abandonable():
                returns = self.scores(params, derived_seed(self.seed, "evaluation episodes")).double().cpu()
                returns, diverged = (returns, 0) if self.family.spec.is_control else without_diverged(returns)
                check_finite(evaluation_returns=returns)
        except Interrupted:
            checkpoint.set_rng_state(before)
            return False
        error = returns.std(0, correction=min(1, len(returns) - 1)) / math.sqrt(len(returns))
        self.evaluated, self.returns = self.iteration, returns.mean(0).tolist()
        stages = self.evaluating.stages(self.family)
        self.log.returns(self.iteration, self.returns, error.tolist(), stages, diverged)
        self.progress.returns(self.iteration, self.returns, stages)
        improved = self.best is None or self.returns[-1] > self.best
        if improved:
            self.best = self.returns[-1]
        return improved

    def scores(self, params: Tensor, seed: int) -> Tensor:
        """Of each task at each stage of adaptation, ``[B, K]``."""
        how = self.evaluating
        if self.family.spec.is_control:
            agent, control = cast(Agent, self.algorithm), cast(ControlFamily, self.family)
            return evaluate(agent, control, params, episodes=how.episodes, seed=seed).returns
        supervised = cast(SupervisedFamily, self.family)
        return predictive_curve(self.algorithm, supervised, params, shots=how.shots, queries=how.queries, seed=seed)

    def saving_due(self, iterations: int) -> bool:
        if self.saved == self.iteration:
            return False
        by_count = self.saving.every and self.iteration and self.iteration % self.saving.every == 0
        by_time = self.saving.seconds and time.monotonic() - self.saved_at >= self.saving.seconds
        return bool(by_count or by_time or self.iteration >= iterations or self.stop.signum is not None)

    def save(self) -> None:
        """A checkpoint of the state between two iterations; older ones go only once it is durable."""
        if self.folder is None:
            return
        self.log.sync()
        loop = {"evaluated": self.evaluated, "best": self.best, "returns": self.returns, **self.times()}
        components = {"algorithm": self.algorithm.state_dict(), "loop": loop, "rng": checkpoint.rng_state()}
        score = self.returns[-1] if self.returns and self.evaluated == self.iteration else None
        checkpoint.save(self.folder.checkpoints, self.iteration, components, score)
        checkpoint.rotate(self.folder.checkpoints, self.saving.keep)
        self.saved, self.saved_at = self.iteration, time.monotonic()

    def times(self) -> dict[str, float]:
        """Wall and CPU seconds of all sessions up to now."""
        wall = self.wall_before + time.monotonic() - self.wall_began
        return {
            "wall_seconds": round(wall, 3),
            "cpu_seconds": round(self.cpu_before + time.process_time() - self.cpu_began, 3),
        }

    def summary(self) -> Summary:
        path = self.folder.path if self.folder else None
        stages = self.evaluating.stages(self.family)
        return Summary(self.iteration, self.metrics, self.returns, stages, self.best, **self.times(), run_dir=path)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """On a non-finite value write down what reproduces it, and go on raising.

        What else goes wrong is put down to a non-finite parameter if there is one: torch refuses to draw from a normal
        with a NaN scale before any check has seen it.
        """
        rng = checkpoint.rng_state()
        try:
            try:
                yield
            except NonFiniteError:
                raise
            except Exception as error:
                self.blame_parameters(error)
                raise
        except NonFiniteError as error:
            error.add_note(f"in iteration {self.iteration}")
            if self.folder:
                error.add_note(write_bundle(self.folder, self.iteration, error, self.algorithm, rng))
            raise

    def blame_parameters(self, error: Exception) -> None:
        try:
            check_finite(**parameters(self.algorithm))
        except NonFiniteError as cause:
            raise cause from error


def without_diverged(scores: Tensor) -> tuple[Tensor, int]:
    """The scores ``[B, K]`` of the tasks where all are finite, if there are any, and how many others there were.

    Few data of an unusual task may send a descent to infinity that converges everywhere else. The run is sound, and its
    user is told.
    """
    kept = scores.isfinite().all(1)
    lost = int((~kept).sum())
    if not lost or lost == len(scores):
        return scores, 0
    warnings.warn(
        f"evaluation: predictions in {lost} of {len(scores)} tasks are not finite and are left out: adaptation "
        f"diverges there; lower its rate",
        stacklevel=2,
    )
    return scores[kept], lost


def write_bundle(
    folder: RunFolder, iteration: int, error: NonFiniteError, algorithm: Algorithm, rng: dict[str, Any]
) -> str:
    """``nan-<iteration>/``: the offending tensors, the state at the fault, and a run folder that runs into it again.

    ``tensors.safetensors`` is what the failing check was given, ``state.safetensors`` the algorithm's state and the
    random streams at the start of the iteration, ``checkpoints/`` the last good checkpoint (linked, not copied, where
    the file system can). Returns a sentence that says so.
    """
    bundle = RunFolder(folder.path / f"nan-{iteration:09d}")
    good = checkpoint.entries(folder.checkpoints)[:1]
    try:
        shutil.rmtree(bundle.path, ignore_errors=True)
        bundle.path.mkdir()
        for path in good:
            shutil.copytree(path, bundle.checkpoints / path.name, copy_function=_link)
        if folder.config.exists():
            shutil.copy(folder.config, bundle.config)
        checkpoint.write_component(bundle.path / "tensors.safetensors", error.tensors)
        state = {"algorithm": algorithm.state_dict(), "rng": rng}
        checkpoint.write_component(bundle.path / "state.safetensors", state)
        about = {"tensor": error.name, "iteration": iteration, "last_good": good[0].name if good else None}
        write_atomically(bundle.path / "error.json", json.dumps({**about, "message": str(error)}, indent=1) + "\n")
    except Exception as fault:  # the disk may be full, the state unsaveable: the cause matters more
        return f"no bundle could be written to {bundle.path}: {fault!r}"
    start = f"the checkpoint of iteration {int(good[0].name.partition('-')[2])}" if good else "the seed"
    return f"{bundle.path} holds the tensors and the state; run again with this run_dir it fails again, from {start}"


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def parameters(algorithm: Algorithm) -> dict[str, Tensor]:
    """Every parameter that an algorithm holds as an attribute, by itself or in a network."""
    held = {"": algorithm} if isinstance(algorithm, nn.Module) else vars(algorithm)
    single: dict[str, Tensor] = {name: part for name, part in held.items() if isinstance(part, nn.Parameter)}
    networks = {name: part for name, part in held.items() if isinstance(part, nn.Module)}
    return single | {f"{name}.{key}": p for name, part in networks.items() for key, p in part.named_parameters()}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's global streams start from ``seed`` inside and continue as before outside."""
    before = checkpoint.rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield
    finally:
        checkpoint.set_rng_state(before)


def derived_seed(seed: int, purpose: str) -> int:
    """A seed of 31 bits for one purpose, unrelated to those of other purposes and of other runs."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:4], "big") >> 1
