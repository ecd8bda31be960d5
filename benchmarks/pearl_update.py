"""Time of one PEARL update, on one thread.

1. At the size of the published point-robot experiment (16 tasks x 256 rows, three layers of 300, encoder three layers
   of 200 on 64 context rows, latent 5): the organisation of the published implementation (``_looped_pearl.py``) against
   this library in float32 and bfloat16, sampling from replay included in all. Beside the time, the GFLOP of the matrix
   products, also in units of F, one pass of all rows through one critic; the speed at which they went by; and the
   fraction of a 2048 x 2048 x 2048 product's.
2. At the default size: where the time goes, and what Pyro costs: the same loss and gradient with and without it.

Asked for: 1.6 times the published organisation's speed in float32 and 3 times in bfloat16, the latter on CPUs that have
bfloat16 instructions. How much float32 gains depends on the CPU too: the published organisation leaves torch's default
product for tall matrices, which on some (AMD Zen 4) runs at half speed and on others (Intel Skylake) does not.

    python -m benchmarks.pearl_update [--quick]

Milliseconds of CPU time, median (lowest-highest) over interleaved rounds; ratios are taken round by round.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch.distributions import Distribution, kl_divergence

from bayesmeta.algorithms import pearl
from bayesmeta.replay import TaskReplay
from bayesmeta.types import Transitions
from benchmarks._agents import Updates, agent
from benchmarks._flops import executed
from benchmarks._looped_pearl import LoopedPEARL
from benchmarks._stopwatch import Piece, timing
from benchmarks._timing import Sample, arguments, interleave, machine, native_bf16, repeat, table, threads


@dataclass(frozen=True)
class Size:
    """Of an update on point-robot; networks have three layers."""

    tasks: int = 16
    rows: int = 256
    context: int = 64
    latent: int = 5
    width: int = 300
    encoder_width: int = 200
    obs: int = 2
    action: int = 2

    @property
    def critic_pass(self) -> int:
        """F: the operations of one forward pass of all rows through one critic, latent included."""
        layers = pairwise([self.obs + self.action + self.latent, *[self.width] * 3, 1])
        return 2 * self.tasks * self.rows * sum(i * o for i, o in layers)


PUBLISHED = Size()
QUICK = Size(tasks=2, rows=8, context=4, width=8, encoder_width=8)
FEW_EPISODES = [f"algorithm.{kind}_episodes=1" for kind in ("initial", "prior", "extra")]
PIECES: list[Piece] = [
    ("sampling from replay", TaskReplay, "sample"),
    ("sampling from replay", TaskReplay, "sample_recent"),
    ("sampling from replay", TaskReplay, "sample_history"),
    ("critics' targets", pearl, "soft_target"),
    ("critics' error", pearl, "td_error"),
    ("rest of the ELBO: Pyro, posterior, KL", pearl, "elbo_loss"),
    ("policy loss", pearl, "policy_loss"),
    ("backward passes", torch.autograd, "grad"),
    ("Adam", torch.optim.Adam, "step"),
    ("target networks", pearl, "polyak"),
    ("checks for finite values", pearl, "check_finite"),
]


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__, argv)
    print(machine())
    with threads(1):
        published(QUICK if options.quick else PUBLISHED, rounds=1 if options.quick else 9)
        default(quick=options.quick)


# --- the published size --------------------------------------------------------------------------------------------


def published(size: Size, rounds: int) -> None:
    """Print the table of one update at ``size``."""
    side = 2048 if size == PUBLISHED else 64
    square = torch.randn(side, side)
    updates = {
        "published organisation": partial(yardstick(size).update, list(range(size.tasks))),
        "bayesmeta, fp32": Updates(agent(*overrides(size))),
        "bayesmeta, bf16": Updates(agent(*overrides(size), "algorithm.precision=bf16")),
    }
    flop = {name: executed(update) for name, update in updates.items()}
    seconds = interleave({**updates, "product": partial(torch.mm, square, square)}, rounds)
    product = seconds.pop("product").map(lambda s: 2 * side**3 / 1e9 / s)
    print(
        f"One update at the published point-robot size; a {side}^3 product in fp32 runs at {product.show(0)} GFLOP/s.\n"
    )
    goals = {"bayesmeta, fp32": "1.6", "bayesmeta, bf16": "3" if native_bf16() else "none: no bf16 here"}
    base, rows = seconds["published organisation"], []
    for name, s in seconds.items():
        rate = Sample(tuple(flop[name] / 1e9 / x for x in s.rounds))
        work = [
            f"{flop[name] / 1e9:.1f}",
            f"{flop[name] / size.critic_pass:.1f}",
            rate.show(0),
            rate.over(product).show(2),
        ]
        rows.append([name, s.map(lambda x: 1e3 * x).show(0), base.over(s).show(2), goals.get(name, ""), *work])
    print(table(["", "ms", "times as fast", "goal", "GFLOP", "F", "GFLOP/s", "of the product's"], rows))


def yardstick(size: Size) -> LoopedPEARL:
    """The published organisation at ``size``."""
    return LoopedPEARL(
        size.obs,
        size.action,
        latent_dim=size.latent,
        width=size.width,
        encoder_width=size.encoder_width,
        rl_batch=size.rows,
        context_batch=size.context,
    )


def overrides(size: Size) -> list[str]:
    """The published configuration, at ``size``."""
    return [
        "experiment=pearl_point_goal",
        f"algorithm.meta_batch={size.tasks}",
        f"algorithm.rl_batch={size.rows}",
        f"algorithm.context_batch={size.context}",
        f"algorithm.latent_dim={size.latent}",
        f"algorithm.widths={[size.width] * 3}",
        f"algorithm.encoder_widths={[size.encoder_width] * 3}",
        *([] if size == PUBLISHED else FEW_EPISODES),
    ]


# --- the default size ----------------------------------------------------------------------------------------------


def default(quick: bool) -> None:
    """Print the breakdown of one update at the default size, and what Pyro costs in it."""
    updates = Updates(agent(*(FEW_EPISODES if quick else [])))
    rounds, calls = (1, 2) if quick else (15, 16)
    algorithm = updates.algorithm
    width = algorithm.critics.net.biases[0].shape[1]
    size = f"{algorithm.meta_batch} tasks x {algorithm.rl_batch} rows, layers of {width}"
    print(f"One update at the default size: {size}.\n")
    pieces, total = breakdown(updates, rounds, calls)
    share = [[name, ms.show(2), f"{100 * ms.median / total.median:.0f} %"] for name, ms in pieces.items()]
    print(table(["", "ms", "share"], [*share, ["all", total.show(2), ""]]))

    jobs = {name: repeat(job, calls) for name, job in with_and_without_pyro(updates).items()}
    seconds = interleave(jobs, rounds)
    base = seconds["the same without Pyro"]
    rows = [[name, s.map(lambda x: 1e3 * x / calls).show(2), s.over(base).show(2)] for name, s in seconds.items()]
    print("Encoder, loss of critics and encoder, and its gradient, at the default size.\n")
    print(table(["", "ms", "times as long"], rows))


def with_and_without_pyro(updates: Updates) -> dict[str, Callable[[], tuple[torch.Tensor, ...]]]:
    """The gradient of the critics' and encoder's loss, of the Pyro program and written out; for one fixed batch."""
    algorithm, (batch, context) = updates.algorithm, updates.sample()
    tasks = len(batch.reward)
    parameters = [*algorithm.critics.parameters(), *algorithm.inference.parameters()]

    def written_out(posterior: Distribution, batch: Transitions) -> torch.Tensor:
        prior = algorithm.inference.init(tasks).posterior
        td_error = -algorithm._factor(posterior.rsample(), batch)
        return (td_error + algorithm.kl_weight * kl_divergence(posterior, prior)).sum()

    def gradient(loss: Callable[[Distribution, Transitions], torch.Tensor]) -> tuple[torch.Tensor, ...]:
        posterior = algorithm.inference.update(algorithm.inference.init(tasks), context).posterior
        return torch.autograd.grad(loss(posterior, batch), parameters)

    return {
        "ELBO of the Pyro program": partial(gradient, algorithm._objective),
        "the same without Pyro": partial(gradient, written_out),
    }


def breakdown(updates: Updates, rounds: int, calls: int) -> tuple[dict[str, Sample], Sample]:
    """Milliseconds per update of each piece, largest first, and of all."""
    encoder: Piece = ("encoder", updates.algorithm.inference, "update")
    updates()
    found = []
    for _ in range(rounds):
        with timing([*PIECES, encoder]) as watch:
            watch.timed("everything else", repeat(updates, calls))()
        found.append({name: 1e3 * seconds / calls for name, seconds in watch.seconds.items()})
    pieces = {name: Sample(tuple(each[name] for each in found)) for name in found[0]}
    total = Sample(tuple(sum(each.values()) for each in found))
    return dict(sorted(pieces.items(), key=lambda item: -item[1].median)), total


if __name__ == "__main__":
    main()
