"""How narrow SVGD's particles are: the mean marginal variance where they come to rest on N(0, I), whose true one is 1.

    OMP_NUM_THREADS=1 python -m benchmarks.svgd_collapse [--particles 10 --starts 64 --steps 3000]

A row per number of dimensions: mean and standard error over ``--starts`` independent starts at draws of the target, for
the RBF kernel with the median's bandwidth and, where there are more particles than dimensions, the linear kernel, whose
covariance is exact; beside them ``log M / d``, which RBF particles reach from ``d = M - 1`` on, as a regular simplex.
The last column is the largest step left, relative to the rate.
"""

import argparse
import math

import torch
from torch import Tensor

from bayesmeta.inference.descent import SGD
from bayesmeta.inference.svgd import RBF, Kernel, Linear, stein_direction, transport

DIMENSIONS = (1, 2, 3, 5, 10, 20, 50, 100)


@torch.no_grad()
def at_rest(dim: int, particles: int, starts: int, steps: int, kernel: Kernel, rate: float) -> tuple[Tensor, float]:
    """The mean marginal variance after ``steps`` steps, for each start, and the largest direction left."""
    generator = torch.Generator().manual_seed(dim)
    start = torch.randn(starts, particles, dim, generator=generator, dtype=torch.float64)
    optimizer = SGD(torch.tensor(rate, dtype=torch.float64))
    z = transport(lambda z: -0.5 * z.square().sum(-1), start, optimizer, steps, kernel)
    return z.var(1, correction=0).mean(-1), stein_direction(z, -z, kernel).abs().max().item()


def cell(variance: Tensor) -> str:
    return f"{variance.mean():.4f} ± {variance.std() / math.sqrt(len(variance)):.4f}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--particles", type=int, default=10, help="M (default 10)")
    parser.add_argument("--starts", type=int, default=64, help="independent sets of particles (default 64)")
    parser.add_argument("--steps", type=int, default=3000, help="of SVGD (default 3000)")
    parser.add_argument("--dimensions", type=int, nargs="+", default=DIMENSIONS, help="of the target")
    options = parser.parse_args(arguments)
    size = (options.particles, options.starts, options.steps)
    print("| dimensions | RBF | log M / d | linear | step left, RBF |\n|---|---|---|---|---|")
    for dim in options.dimensions:
        rbf, left = at_rest(dim, *size, RBF(), 0.5)
        linear = cell(at_rest(dim, *size, Linear(), 0.05)[0]) if dim < options.particles else "-"
        simplex = f"{math.log(options.particles) / dim:.4f}" if dim >= options.particles - 1 else "-"
        print(f"| {dim} | {cell(rbf)} | {simplex} | {linear} | {left:.0e} |", flush=True)


if __name__ == "__main__":
    main()
