"""How often do the gates of calibration reject wrong posteriors, and the exact one?

    python -m benchmarks.diagnostic_power [seeds]

Bayesian linear regression in two dimensions whose exact posterior has correlation -0.74 between its coordinates, and
seven wrong ones made from it. Per seed 300 data sets of 10 data and 199 draws of each belief. Prints the share of seeds
in which each quantity is rejected on its own at 5 %, and in which any is at the declared family-wise rate of 1e-3.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from bayesmeta.diagnostics.calibration import ALPHA, calibration, ranks
from bayesmeta.diagnostics.export import results_from
from bayesmeta.diagnostics.uniformity import holm
from bayesmeta.inference.beliefs import FullGaussian
from bayesmeta.inference.conjugate import ConjugateGaussian
from bayesmeta.models.linear_gaussian import LinearGaussianModel
from bayesmeta.tasks.model_family import ModelFamily
from bayesmeta.train import derived_seed, seeded
from bayesmeta.types import Context

TASKS, DRAWS, SHOTS = 300, 199, 10
QUANTITIES = ("z0", "z1", "log_likelihood", "log_q", "tarp")


def inputs(batch: int, shots: int, generator: torch.Generator) -> torch.Tensor:
    """``(1, u)`` with ``u ~ N(1.1, 1)``: intercept and slope have posterior correlation near -1.1 / sqrt(2.21)."""
    u = 1.1 + torch.randn(batch, shots, 1, generator=generator)
    return torch.cat([torch.ones_like(u), u], -1)


MODEL = LinearGaussianModel(torch.zeros(2), torch.eye(2), noise=0.5)
EXACT = ConjugateGaussian(MODEL)
FAMILY = ModelFamily(MODEL, inputs, exact=EXACT)


@dataclass(frozen=True)
class Wrong:
    """The exact procedure with a fault: ``distort`` maps the exact belief and the data to another belief."""

    distort: Callable[[FullGaussian, Context], FullGaussian]

    def init(self, batch: int) -> FullGaussian:
        return EXACT.init(batch)

    def update(self, belief: FullGaussian, data: Context) -> FullGaussian:
        return self.distort(EXACT.update(belief, data), data)


def scaled(factor: float) -> Callable[[FullGaussian, Context], FullGaussian]:
    """Standard deviations times ``factor``."""
    return lambda exact, _: FullGaussian(exact.information / factor**2, exact.precision / factor**2)


def biased(exact: FullGaussian, _: Context) -> FullGaussian:
    """Every mean 0.3 standard deviations too high."""
    posterior = exact.posterior
    return moments(posterior.mean + 0.3 * posterior.stddev, posterior.covariance_matrix)


def half(exact: FullGaussian, data: Context) -> FullGaussian:
    """What half of the data say."""
    return EXACT.update(EXACT.init(data.batch), data.rows(0, data.size // 2))


def mean_field(exact: FullGaussian, _: Context) -> FullGaussian:
    """The right marginals, independent."""
    return moments(exact.posterior.mean, torch.diag_embed(exact.posterior.variance))


def mean_field_kl(exact: FullGaussian, _: Context) -> FullGaussian:
    """The independent Gaussian closest in ``KL(q || exact)``: variational inference with a diagonal covariance."""
    return moments(exact.posterior.mean, torch.diag_embed(exact.precision.diagonal(dim1=-2, dim2=-1).reciprocal()))


def moments(mean: torch.Tensor, covariance: torch.Tensor) -> FullGaussian:
    precision = torch.linalg.inv(covariance)
    return FullGaussian((precision @ mean.unsqueeze(-1)).squeeze(-1), precision)


CASES: dict[str, Wrong] = {
    "exact": Wrong(lambda exact, _: exact),
    "sd x 0.8": Wrong(scaled(0.8)),
    "sd x 1.25": Wrong(scaled(1.25)),
    "bias 0.3 sd": Wrong(biased),
    "q = prior": Wrong(lambda _, data: EXACT.init(data.batch)),
    "half of the data": Wrong(half),
    "mean field, right marginals": Wrong(mean_field),
    "mean field, KL": Wrong(mean_field_kl),
}


def p_values(case: Wrong, seed: int) -> np.ndarray:
    """The p-values of :data:`QUANTITIES` after all data."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "data"))
    truth = FAMILY.sample(TASKS, "test", generator)
    context = FAMILY.context(truth, SHOTS, generator)
    options = {"sizes": (0, SHOTS), "draws": DRAWS, "seed": derived_seed(seed, "draws"), "truth": truth}
    tree = results_from(context, truth, case, FAMILY.spec, **options)
    with seeded(derived_seed(seed, "ranks")):
        group = calibration(ranks(tree, context, truth, model=MODEL, seed=seed))
    return group["p_value"].sel(context_step=SHOTS, quantity=list(QUANTITIES)).to_numpy()


def rates(name: str, seeds: int) -> dict[str, float]:
    """Share of seeds in which each quantity is rejected at 5 %, and (``any``) one of them at the declared rate."""
    p = np.stack([p_values(CASES[name], seed) for seed in range(seeds)])
    family = np.mean([holm(row, ALPHA).any() for row in p])
    return {**dict(zip(QUANTITIES, (p < 0.05).mean(0).tolist(), strict=True)), "any": float(family)}


def main(seeds: int = 100) -> None:
    torch.set_num_threads(1)
    print(
        f"| rejected, of {seeds} seeds (exact: {2 * seeds}) |",
        " | ".join(f"{q}, 5 %" for q in QUANTITIES),
        "| any, 0.1 % |",
    )
    print("|" + "---|" * (len(QUANTITIES) + 2))
    for name in CASES:
        found = rates(name, 2 * seeds if name == "exact" else seeds)
        print(f"| {name} |", " | ".join(f"{found[key]:.3f}" for key in (*QUANTITIES, "any")), "|", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
