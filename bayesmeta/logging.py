"""What a run tells: JSON lines, TensorBoard, and progress on the terminal."""

import json
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from bayesmeta.folder import RunFolder

TIME_FIELDS = ("wall_seconds", "cpu_seconds")  # the only fields that differ between two runs of one seed
ProgressMode = Literal["auto", "bar", "lines", "quiet"]


class JsonLines:
    """A file of one JSON object per line, cut back on opening to the lines of iterations up to ``last``."""

    def __init__(self, file: Path, last: int) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.path = file
        keep = _lines_up_to(file, last)
        self._file = open(file, "ab")  # noqa: SIM115
        self._file.truncate(keep)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line and hand it to the system. Values must be finite."""
        line = json.dumps(record, allow_nan=False) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            raise OSError(
                error.errno, f"could not append {len(line)} bytes: {error.strerror}", str(self.path)
            ) from error

    def sync(self) -> None:
        """Make what was written durable."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _lines_up_to(file: Path, last: int) -> int:
    """Bytes of the leading whole lines whose iteration is at most ``last``; a line cut by a crash ends them."""
    keep = 0
    if not file.exists():
        return keep
    with open(file, "rb") as source:
        for line in source:
            try:
                iteration = json.loads(line)["iteration"]
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n") or iteration > last:
                break
            keep += len(line)
    return keep


class TensorBoard:
    """Scalars for TensorBoard. A failure is one warning and then silence: it never stops a run."""

    def __init__(self, folder: Path, last: int) -> None:
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step hides what a continued run had written past its checkpoint.
            self._writer = SummaryWriter(str(folder), purge_step=last + 1 if last else None)
        except Exception as error:
            self._give_up(error)

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        if self._writer is None:
            return
        try:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, iteration)
            self._writer.flush()
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        if self._writer is not None:
            try:
                self._writer.close()
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._writer = None
        text = f"no TensorBoard from here on, the run goes on and metrics.jsonl is complete: {error!r}"
        warnings.warn(text, RuntimeWarning, stacklevel=3)


class RunLog:
    """Everything a run writes down while it goes: nothing at all without a folder.

    Opened at iteration ``last``, last evaluated at ``evaluated``, it forgets what an interrupted session wrote later.
    """

    def __init__(self, folder: RunFolder | None, last: int, evaluated: int, tensorboard: bool) -> None:
        self._metrics = JsonLines(folder.metrics, last) if folder else None
        self._returns = JsonLines(folder.evaluation / "returns.jsonl", evaluated) if folder else None
        self._board = TensorBoard(folder.tensorboard, last) if folder and tensorboard else None

    def metrics(self, iteration: int, metrics: Mapping[str, float], times: Mapping[str, float]) -> None:
        """One iteration's scalars; ``times`` are the :data:`TIME_FIELDS`."""
        if self._metrics:
            self._metrics.write({"iteration": iteration, **metrics, **times})
        if self._board:
            self._board.write(iteration, {f"train/{name}": value for name, value in metrics.items()})

    def returns(
        self, iteration: int, mean: Sequence[float], error: Sequence[float], stages: Sequence[str], diverged: int = 0
    ) -> None:
        """One evaluation: mean and standard error over tasks of the score at each stage of adaptation.

        ``diverged`` tasks are left out of both.
        """
        if self._returns:
            found = {"iteration": iteration, "returns": list(mean), "standard_error": list(error)}
            self._returns.write(found | ({"diverged": diverged} if diverged else {}))
        if self._board:
            self._board.write(iteration, {f"test/{s}": value for s, value in zip(stages, mean, strict=True)})

    def sync(self) -> None:
        """Make the lines written so far durable: before the checkpoint that relies on them."""
        for lines in (self._metrics, self._returns):
            if lines:
                lines.sync()

    def close(self) -> None:
        for sink in (self._metrics, self._returns, self._board):
            if sink:
                sink.close()


class Progress:
    """Where the run is: a bar on a terminal, else a plain line at most every few seconds."""

    def __init__(self, mode: ProgressMode, iterations: int, start: int, seconds_between: float = 5.0) -> None:
        self.mode = ("bar" if sys.stderr.isatty() else "lines") if mode == "auto" else mode
        self._total, self._start, self._between = iterations, start, seconds_between
        self._began = time.monotonic()
        self._last = -seconds_between
        self._bar = tqdm(total=iterations, initial=start, unit="it", dynamic_ncols=True) if self.mode == "bar" else None

    def step(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """One more iteration is done; the first four metrics are shown."""
        text = ", ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:4])
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(1)
        elapsed = time.monotonic() - self._began
        if self.mode == "lines" and (elapsed - self._last >= self._between or iteration == self._total):
            self._last = elapsed
            left = elapsed / (iteration - self._start) * (self._total - iteration)
            print(f"iteration {iteration}/{self._total}: {text} ({_clock(left)} left)", flush=True)

    def returns(self, iteration: int, returns: Sequence[float], stages: Sequence[str]) -> None:
        """An evaluation: the mean score at each stage of adaptation."""
        self.say(f"iteration {iteration}: test {described(returns, stages)}")

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif self.mode == "lines":
            print(text, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def described(scores: Sequence[float], stages: Sequence[str]) -> str:
    """The scores in one line, under what their stages have in common: ``return by episode -17 -9 -5.6``."""
    values = " ".join(f"{score:.4g}" for score in scores)
    if stages[0].startswith("return"):
        return f"return by episode {values}"
    shots = ", ".join(stage.rpartition("_")[2] for stage in stages)
    return f"log density after {shots} data {values}"
