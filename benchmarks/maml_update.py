"""Time of one MAML update with its full second-order gradient, on one thread, against a loop over tasks.

The yardstick (``_looped_maml.py``) has the same network, losses and optimiser and takes one task after another with
``autograd.grad``, which runs level with learn2learn and TorchOpt. ``dense`` gives every task weights of its own in
batched products, or under vmap where the network is no stack of linear layers; ``low rank`` is the exact form that
never makes them; ``bayesmeta`` is what the library chooses, and ``compiled`` that through torch.compile.

Asked for, against the loop: 12 times eager and 25 times compiled on the sinusoid with 1 and with 5 inner steps, 10
times on the MLP, 1.3 times on four convolutions.

    python -m benchmarks.maml_update [--quick]

Milliseconds of CPU time, median (lowest-highest) over interleaved rounds; ratios are taken round by round.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch

from bayesmeta.algorithms.maml import MAML
from bayesmeta.episodic import Episodes
from bayesmeta.models.architectures import Network
from bayesmeta.models.stacked import linear_stack
from bayesmeta.train import seeded
from bayesmeta.types import Context, Spec
from benchmarks._looped_maml import LoopedMAML, cross_entropy, squared_error
from benchmarks._timing import arguments, interleave, machine, repeat, table, threads


@dataclass(frozen=True)
class Problem:
    """A network on data of given sizes; ``rounds`` and ``calls`` are how often it is timed."""

    spec: Spec
    network: Network
    tasks: int
    shots: int
    queries: int
    steps: int
    rate: float
    rounds: int = 15
    calls: int = 1
    compiled: bool = False

    def learner(self, *, compiled: bool = False) -> MAML:
        with seeded(0):
            episodes = Episodes(meta_batch=self.tasks, shots=self.shots, queries=self.queries, compiled=compiled)
            return MAML(
                self.spec,
                network=self.network,
                episodes=episodes,
                steps=self.steps,
                rate=self.rate,
                learn_noise=False,
                noise=0.5**0.5,
                transductive=True,
            )

    def data(self) -> tuple[Context, Context]:
        generator = torch.Generator().manual_seed(0)
        rows = self.shots + self.queries
        x = torch.rand(self.tasks, rows, self.spec.x_dim, generator=generator)
        y = torch.randn(self.tasks, rows, self.spec.y_dim, generator=generator)
        if self.spec.classes:
            y = torch.nn.functional.one_hot(y.argmax(-1), self.spec.y_dim).float()
        both = Context.of(x, y)
        return both.rows(0, self.shots), both.rows(self.shots, rows)


SINE = Spec("sinusoid", 1, 1, ("amplitude", "phase"))
IMAGES = Spec("images", 784, 5, ("a", "b", "c", "d", "e"), classes=True, x_shape=(1, 28, 28))
PROBLEMS = {
    "sinusoid 1-40-40-1, 1 step": Problem(SINE, Network(), 25, 10, 10, 1, 0.01, calls=10, compiled=True),
    "sinusoid 1-40-40-1, 5 steps": Problem(SINE, Network(), 25, 10, 10, 5, 0.01, calls=3, compiled=True),
    "images, MLP 256-128-64-64": Problem(IMAGES, Network(widths=(256, 128, 64, 64)), 32, 5, 5, 1, 0.4),
    "images, 4 convolutions": Problem(IMAGES, Network(kind="conv4"), 32, 5, 5, 1, 0.4, rounds=5),
}
QUICK = {
    "sinusoid, quick": Problem(SINE, Network(widths=(4,)), 2, 3, 3, 1, 0.01, rounds=1),
    "images, quick": Problem(IMAGES, Network(kind="conv4", filters=2), 2, 5, 5, 1, 0.4, rounds=1),
}


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__, argv)
    print(machine())
    with threads(1):
        for name, problem in (QUICK if options.quick else PROBLEMS).items():
            print(f"## {name}\n")
            print(report(problem))


def report(problem: Problem) -> str:
    """The table of one problem."""
    support, query = problem.data()
    times = interleave(
        {name: repeat(lambda u=update: u(support, query), problem.calls) for name, update in ways(problem).items()},
        problem.rounds,
    )
    loop = times["loop over tasks"]
    rows = [
        [name, sample.map(lambda s: 1e3 * s / problem.calls).show(2), loop.over(sample).show(1)]
        for name, sample in times.items()
    ]
    return table(["", "ms per update", "times as fast as the loop"], rows)


def ways(problem: Problem) -> dict[str, Callable[[Context, Context], object]]:
    """The updates that are compared, each on parameters of its own."""
    learner = problem.learner()
    network = copy.deepcopy(learner.inference.model.network)
    loss = cross_entropy if problem.spec.classes else squared_error
    found: dict[str, Callable[[Context, Context], object]] = {
        "loop over tasks": LoopedMAML(network, loss, steps=problem.steps, rate=problem.rate).update
    }
    forms = {"dense": False} | ({"low rank": True} if linear_stack(network) is not None else {})
    for name, low_rank in forms.items():
        found[name] = forced(problem.learner(), low_rank)
    found["bayesmeta"] = learner.update
    if problem.compiled:
        found["compiled"] = problem.learner(compiled=True).update
    return found


def forced(learner: MAML, low_rank: bool) -> Callable[[Context, Context], object]:
    """An update in one of the two forms, whatever the library would choose."""

    def update(support: Context, query: Context) -> object:
        with choosing(low_rank):
            return learner.update(support, query)

    return update


@contextmanager
def choosing(low_rank: bool) -> Iterator[None]:
    with mock.patch("bayesmeta.inference.gradient.worthwhile", lambda *_: low_rank):
        yield


if __name__ == "__main__":
    main()
