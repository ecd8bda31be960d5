"""Time of one PEARL update, on one thread.

1. At the size of the published point-robot experiment (16 tasks x 256 rows, three layers of 300, encoder three layers of
   200 on 64 context rows, latent 5): the organisation of the published implementation (``_looped_pearl.py``) against
   this library in float32 and bfloat16, sampling from replay included in all. Beside the time, the matrix products' GFLOP
   (counted from layer sizes), the speed at which they went by, and the fraction of a 2048 x 2048 x 2048 product's.
2. At the default size: where the time goes, and what Pyro costs: the same loss and gradient with and without it.

Asked for: 1.6 times the published organisation's speed in float32 and 3 times in bfloat16, the latter on CPUs that have
bfloat16 instructions. How much float32 gains depends on the CPU too: the published organisation leaves torch's default
product for tall matrices, which on some (AMD Zen 4) runs at half speed and on others (Intel Skylake) does not.

    python -m benchmarks.pearl_update [--quick]

Milliseconds of CPU time, median (lowest-highest) over interleaved rounds; ratios are taken round by round.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from bayesmeta.algorithms import pearl
from bayesmeta.replay import TaskReplay
from torch.distributions import kl_divergence

from benchmarks._agents import Updates, agent
from benchmarks._flops import UpdateSize, batched, looped
from benchmarks._looped_pearl import LoopedPEARL
from benchmarks._stopwatch import Piece, timing
from benchmarks._timing import Sample, arguments, interleave, machine, native_bf16, repeat, table, threads

PUBLISHED = UpdateSize(
    tasks=16,
    rl_batch=256,
    context_batch=64,
    obs_dim=2,
    action_dim=2,
    latent_dim=5,
    widths=(300, 300, 300),
    encoder_widths=(200, 200, 200),
)
QUICK = replace(PUBLISHED, tasks=2, rl_batch=8, context_batch=4, widths=(8, 8, 8), encoder_widths=(8, 8, 8))
PIECES: list[Piece] = [
    ("sampling from replay", TaskReplay, "sample"),
    ("sampling from replay", TaskReplay, "sample_recent"),
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


def published(size: UpdateSize, rounds: int) -> None:
    """Print the table of one update at ``size``."""
    overrides = [
        "experiment=pearl_point_goal",
        f"algorithm.meta_batch={size.tasks}",
        f"algorithm.rl_batch={size.rl_batch}",
        f"algorithm.context_batch={size.context_batch}",
        f"algorithm.latent_dim={size.latent_dim}",
        f"algorithm.widths={list(size.widths)}",
        f"algorithm.encoder_widths={list(size.encoder_widths)}",
    ]
    side = 2048 if size is PUBLISHED else 64
    square = torch.randn(side, side)
    jobs = {
        "published organisation": partial(yardstick(size).update, list(range(size.tasks))),
        "bayesmeta, fp32": Updates(agent(*overrides)),
        "bayesmeta, bf16": Updates(agent(*overrides, "algorithm.precision=bf16")),
        "product": partial(torch.mm, square, square),
    }
    gflop = {name: batched(size) / 1e9 for name in jobs} | {"published organisation": looped(size) / 1e9}
    seconds = interleave(jobs, rounds)
    product = seconds.pop("product").map(lambda s: 2 * side**3 / 1e9 / s)
    goals = {"published organisation": "", "bayesmeta, fp32": "1.6", "bayesmeta, bf16": "3"}
    if not native_bf16():
        goals["bayesmeta, bf16"] = "none: no bf16 here"
    rows = [
        published_row(name, s, seconds["published organisation"], gflop[name], product, goals[name])
        for name, s in seconds.items()
    ]
    print(f"One update at the published point-robot size; a {side}^3 product in fp32 runs at {product.show(0)} GFLOP/s.\n")
    print(table(["", "ms", "times as fast", "goal", "GFLOP", "GFLOP/s", "of the product's"], rows))


def published_row(name: str, seconds: Sample, base: Sample, gflop: float, product: Sample, goal: str) -> list[str]:
    rate = seconds.map(lambda s: gflop / s)
    ms = seconds.map(lambda s: 1e3 * s)
    return [name, ms.show(0), base.over(seconds).show(2), goal, f"{gflop:.1f}", rate.show(0), rate.over(product).show(2)]


def yardstick(size: UpdateSize) -> LoopedPEARL:
    """The published organisation at ``size``, three layers everywhere."""
    return LoopedPEARL(
        size.obs_dim,
        size.action_dim,
        latent_dim=size.latent_dim,
        width=size.widths[0],
        encoder_width=size.encoder_widths[0],
        rl_batch=size.rl_batch,
        context_batch=size.context_batch,
    )


# --- the default size ----------------------------------------------------------------------------------------------


def default(quick: bool) -> None:
    """Print the breakdown of one update at the default size, and what Pyro costs in it."""
    updates = Updates(agent("algorithm.initial_episodes=1") if quick else agent())
    rounds, calls = (1, 2) if quick else (15, 16)
    algorithm = updates.algorithm
    tasks, rows, widths = algorithm.meta_batch, algorithm.rl_batch, [w.shape[1] for w in algorithm.critics.net.biases]
    print(f"One update at the default size: {tasks} tasks x {rows} rows, layers of {widths[0]}.\n")
    pieces, total = breakdown(updates, rounds, calls)
    share = [[name, ms.show(2), f"{100 * ms.median / total.median:.0f} %"] for name, ms in pieces.items()]
    print(table(["", "ms", "share"], [*share, ["all", total.show(2), ""]]))

    batch, context = updates.sample()
    parameters = algorithm._q_parameters

    def gradients(loss: Any) -> None:
        posterior = algorithm.inference.update(algorithm.inference.init(tasks), context).posterior
        torch.autograd.grad(loss(posterior, batch), parameters)

    def without_pyro(posterior: Any, batch: Any) -> torch.Tensor:
        prior = algorithm.inference.init(tasks).posterior
        td_error = -algorithm._factor(posterior.rsample(), batch)
        return (td_error + algorithm.kl_weight * kl_divergence(posterior, prior)).sum()

    jobs = {
        "ELBO of the Pyro program": repeat(partial(gradients, algorithm._objective), calls),
        "the same without Pyro": repeat(partial(gradients, without_pyro), calls),
    }
    seconds = interleave(jobs, rounds)
    base = seconds["the same without Pyro"]
    rows_ = [[name, s.map(lambda x: 1e3 * x / calls).show(2), s.over(base).show(2)] for name, s in seconds.items()]
    print("Encoder, loss of critics and encoder, and its gradient, at the default size.\n")
    print(table(["", "ms", "times as long"], rows_))


def breakdown(updates: Updates, rounds: int, calls: int) -> tuple[dict[str, Sample], Sample]:
    """Milliseconds per update of each piece, largest first, and of all."""
    encoder: Piece = ("encoder", updates.algorithm.inference, "update")
    updates()
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        with timing([*PIECES, encoder]) as watch:
            watch.timed("everything else", repeat(updates, calls))()
        found.append({name: 1e3 * seconds / calls for name, seconds in watch.seconds.items()})
    pieces = {name: Sample(tuple(each[name] for each in found)) for name in found[0]}
    total = Sample(tuple(sum(each.values()) for each in found))
    return dict(sorted(pieces.items(), key=lambda item: -item[1].median)), total


if __name__ == "__main__":
    main()
