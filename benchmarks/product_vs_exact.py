"""How close a product of learned Gaussian factors comes to the exact posterior, at every context size.

Encoders are trained by Pyro's ELBO on contexts of random size and compared with the conjugate posterior: with the prior
as a factor, and in the published form without it. Prints the mean KL(exact || learned) in nats over held-out tasks, as
mean and range over seeds, beside the best that the published form can do in closed form.

    OMP_NUM_THREADS=1 python -m benchmarks.product_vs_exact
"""

import argparse
import math
import time
from collections.abc import Sequence

import torch
from pyro.infer import TraceMeanField_ELBO
from torch.distributions import Distribution, MultivariateNormal, kl_divergence

from bayesmeta.inference.guides import elbo_loss, guide
from bayesmeta.inference.product import ProductOfGaussians
from bayesmeta.tasks.linear_gaussian import LinearGaussian
from bayesmeta.tasks.normal_normal import NormalNormal
from bayesmeta.types import Context, Inference

SIZES = (1, 2, 5, 10, 20, 50)
Family = NormalNormal | LinearGaussian

# The encoder's prior is N(0, I), so the latent is measured in prior standard deviations: a prior variance of 0.7 and a
# noise variance of 0.3 are 1 and 3/7. KL divergences do not depend on the unit.
NOISE_VARIANCE = 0.3 / 0.7


def train(
    family: Family, encoder: ProductOfGaussians, *, steps: int, lr: float = 1e-2, tasks: int = 64, seed: int = 0
) -> ProductOfGaussians:
    """Maximise the ELBO over contexts of log-uniform sizes from 1 to the largest of ``SIZES``."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(encoder.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    largest = max(SIZES)
    for _ in range(steps):
        data = family.context(family.sample(tasks, "train", generator), largest, generator)
        size = (torch.rand(tasks, 1, generator=generator) * math.log(largest + 1)).exp().long()
        data = Context(data.x, data.y, torch.arange(largest) < size)
        loss = elbo_loss(TraceMeanField_ELBO(), family.model, guide(encoder), data) / tasks
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return encoder


def kl_by_size(family: Family, inference: Inference, *, tasks: int = 1000, seed: int = 10_000) -> list[float]:
    """Mean ``KL(exact || q)`` over held-out tasks at each of ``SIZES``."""
    generator = torch.Generator().manual_seed(seed)
    data = family.context(family.sample(tasks, "test", generator), max(SIZES), generator)
    exact, found = family.exact, []
    for size in SIZES:
        p, q = (_posterior(procedure, data.rows(0, size)) for procedure in (exact, inference))
        found.append(float(kl_divergence(p, q).mean()))
    return found


def published_kl(shrinkage: float, variance: float, noise_variance: float) -> list[float]:
    """``KL(exact || q)`` for factors ``N(shrinkage * y_n, variance)`` without a prior, averaged over data.

    With ``ybar ~ N(0, 1 + s2/n)``, the exact posterior is ``N(w ybar, w s2/n)``, ``w = 1 / (1 + s2/n)``, and the
    product ``N(shrinkage ybar, variance / n)``.
    """
    found = []
    for n in SIZES:
        spread = 1 + noise_variance / n
        exact, q = noise_variance / n / spread, variance / n
        bias = (1 / spread - shrinkage) ** 2 * spread
        found.append(0.5 * (math.log(q / exact) + (exact + bias) / q - 1))
    return found


def tuned_for(n: int, noise_variance: float) -> tuple[float, float]:
    """The factor, as (shrinkage, variance), whose product is exact at size ``n``."""
    spread = 1 + noise_variance / n
    return 1 / spread, noise_variance / spread


def scalar_family() -> NormalNormal:
    return NormalNormal(noise=math.sqrt(NOISE_VARIANCE))


def plane_family() -> LinearGaussian:
    return LinearGaussian(dim=2, noise=1.0)


def encoder_of(family: Family, seed: int, **options: object) -> ProductOfGaussians:
    """An encoder with weights that depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ProductOfGaussians(family.spec.x_dim, 1, family.spec.param_dim, widths=(64,), **options)


def _posterior(inference: Inference, data: Context) -> Distribution:
    with torch.no_grad():
        posterior = inference.update(inference.init(data.batch), data).posterior
        if isinstance(posterior, MultivariateNormal):
            return posterior
        return MultivariateNormal(posterior.mean, torch.diag_embed(posterior.variance))


def _row(label: str, runs: Sequence[Sequence[float]]) -> str:
    cells = []
    for column in zip(*runs, strict=True):
        mean, spread = sum(column) / len(column), f" [{min(column):.4f}, {max(column):.4f}]" if len(column) > 1 else ""
        cells.append(f"{mean:.4f}{spread}")
    return f"| {label} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2000, help="of training (default 2000)")
    parser.add_argument("--seeds", type=int, default=3, help="number of training seeds (default 3)")
    options = parser.parse_args()
    started = time.process_time()
    print("| KL(exact || q), nats | " + " | ".join(f"n = {n}" for n in SIZES) + " |")
    print("|---" * (len(SIZES) + 1) + "|")
    print(_row("published, true factors", [published_kl(1.0, NOISE_VARIANCE, NOISE_VARIANCE)]))
    print(_row("published, best factor at n = 5", [published_kl(*tuned_for(5, NOISE_VARIANCE), NOISE_VARIANCE)]))
    scalar, plane = scalar_family(), plane_family()
    trained = (
        ("published, trained", scalar, {"prior_factor": False}),
        ("with prior factor, trained", scalar, {}),
        ("with prior factor, D = 2, full, trained", plane, {"covariance": "full", "rank": 2}),
    )
    for label, family, choice in trained:
        encoders = [encoder_of(family, seed, **choice) for seed in range(options.seeds)]
        runs = [
            kl_by_size(family, train(family, encoder, steps=options.steps, seed=seed))
            for seed, encoder in enumerate(encoders)
        ]
        print(_row(label, runs), flush=True)
    ratio = [f"{0.3 / n:.4f} vs {1 / (1 / 0.7 + n / 0.3):.4f}" for n in SIZES]
    print("\nposterior variance at tau2 = 0.7, s2 = 0.3, true factors without and with the prior:", ", ".join(ratio))
    print(f"{options.seeds} seeds, {options.steps} steps, {time.process_time() - started:.0f} s of CPU")


if __name__ == "__main__":
    main()
