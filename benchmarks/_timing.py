"""What the benchmarks share: paired interleaved timing, threads, and tables."""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Clock = Callable[[], float]
# Of one thread, CPU time is wall time on an otherwise idle machine, and other processes disturb it far less.
cpu_time: Clock = time.process_time
wall_time: Clock = time.perf_counter


@dataclass(frozen=True)
class Sample:
    """One number per round; shown as ``median (lowest-highest)``."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def map(self, fn: Callable[[float], float]) -> "Sample":
        """``fn`` of every round."""
        return Sample(tuple(fn(value) for value in self.rounds))

    def over(self, other: "Sample") -> "Sample":
        """The ratio round by round: what slows a whole round down cancels."""
        return Sample(tuple(a / b for a, b in zip(self.rounds, other.rounds, strict=True)))

    def show(self, digits: int = 1) -> str:
        return f"{self.median:,.{digits}f} ({min(self.rounds):,.{digits}f}-{max(self.rounds):,.{digits}f})"


def interleave(jobs: Mapping[str, Callable[[], Any]], rounds: int, clock: Clock = cpu_time) -> dict[str, Sample]:
    """Seconds of every job in every round, after one untimed call of each.

    A round runs each job once, so that all of them meet the same machine, and each round starts with another one, so
    that none always follows the same.
    """
    names = list(jobs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for job in jobs.values():
        job()
    for k in range(rounds):
        first = k % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            jobs[name]()
            seconds[name].append(clock() - start)
    return {name: Sample(tuple(values)) for name, values in seconds.items()}


def repeat(job: Callable[[], Any], calls: int) -> Callable[[], None]:
    """A job that calls another ``calls`` times: for what is too short to be timed once."""

    def repeated() -> None:
        for _ in range(calls):
            job()

    return repeated


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch on ``count`` threads, inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def arguments(description: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    """``--quick``, which every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    return parser.parse_args(argv)


def machine() -> str:
    """One line on what was measured on, with the load that other processes put on it."""
    name = _cpuinfo("model name") or platform.processor()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    bf16 = ", ".join(native_bf16()) or "no native bf16"
    return f"{name}, {os.cpu_count()} CPUs, {bf16}, torch {torch.__version__}, load {load:.1f}\n"


def native_bf16() -> tuple[str, ...]:
    """The instructions for bfloat16 products that this CPU has; without any they are emulated, and slow."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()  # x86 or Arm
    return tuple(name for name in ("avx512_bf16", "amx_bf16", "bf16") if name in flags)


def _cpuinfo(key: str) -> str:
    """The first CPU's entry in the kernel's list, empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((value.strip() for name, _, value in (x.partition(":") for x in lines) if name.strip() == key), "")
