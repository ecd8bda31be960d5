"""How close few steps of variational descent, and Laplace's method, come to a tiny network's posterior by NUTS.

    OMP_NUM_THREADS=1 python -m benchmarks.abml_posterior

A network 1-4-1 with tanh, a fixed Gaussian prior around weights that are not symmetric, known noise, data drawn from
the model itself. NUTS runs on the same Pyro program, and only chains that its own tests accept count (R-hat <= 1.01,
ESS >= 400 in every weight of every task, no divergence). Of the weights and of the network's function on a grid it
prints the error of the means, in standard deviations of NUTS, and the ratio of standard deviations to NUTS'; medians
over tasks and coordinates. A ratio below 1 is overconfidence.
"""

import argparse
import time
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.inference.descent import SGD
from bayesmeta.inference.gradient import GradientDescent
from bayesmeta.inference.laplace import Laplace
from bayesmeta.inference.mcmc import NUTS, Chains, ReferenceRejected
from bayesmeta.inference.variational import VariationalDescent
from bayesmeta.models.architectures import mlp
from bayesmeta.models.network_model import NetworkModel
from bayesmeta.models.outputs import GaussianOutput
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.types import Context, Inference

SIZES = (2, 5, 20)
GRID = torch.linspace(-3, 3, 13).unsqueeze(-1)
DRAWS = 2000


@dataclass(frozen=True)
class Moments:
    """Means and standard deviations of each weight and of the network's function at each point of the grid."""

    weights: tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]
    function: tuple[Float[Tensor, "B G"], Float[Tensor, "B G"]]


def network(*, scale: float = 0.5, noise: float = 0.3, hidden: int = 4) -> NetworkModel:
    """The model: its prior's mean is torch's initialisation, twice as large, which tells the hidden units apart."""
    with torch_seeded(0):
        net = mlp(1, 1, (hidden,), activation="tanh")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= 2
    return NetworkModel(net, GaussianOutput(1, noise=noise), scale=scale).requires_grad_(False)


def data_of(model: NetworkModel, tasks: int, size: int, seed: int = 0) -> Context:
    """Tasks drawn from the prior, with inputs uniform on [-3, 3]."""
    generator = torch.Generator().manual_seed(seed)
    with torch_seeded(seed):
        z = model.prior(tasks).sample()
        x = 6 * torch.rand(tasks, size, 1, generator=generator) - 3
        data = Context.of(x, torch.zeros(tasks, size, 1))
        return Context.of(x, model.likelihood(z.unsqueeze(-2), data).sample())


def procedures(model: NetworkModel) -> dict[str, Inference]:
    """What is compared; descent is in units of the prior, 16 draws in pairs."""

    def variational(steps: int, covariance: str = "diagonal", rate: float = 0.004) -> VariationalDescent:
        options = {"covariance": covariance, "whitened": True, "draws": 16, "optimizer": SGD(rate)}
        return VariationalDescent(model, x_dim=1, y_dim=1, steps=steps, **options)

    def laplace(curvature: str) -> Laplace:
        mode = GradientDescent(model, x_dim=1, y_dim=1, steps=500, objective="joint", optimizer=SGD(5e-4))
        return Laplace(mode, curvature=curvature, newton=0 if curvature == "diagonal" else 5)

    return {
        "mean field, 5 steps": variational(5),
        "mean field, 50 steps": variational(50),
        "mean field, 2000 steps": variational(2000),
        "full covariance, 2000 steps": variational(2000, "full"),
        "Laplace, Fisher": laplace("fisher"),
        "Laplace, diagonal": laplace("diagonal"),
    }


@torch.no_grad()
def moments(model: NetworkModel, posterior: Distribution) -> Moments:
    """From draws, so that chains and Gaussians are treated alike."""
    z = posterior.sample(torch.Size((DRAWS,)))
    outputs = model.outputs(z.unsqueeze(-2), GRID.expand(z.shape[1], -1, -1)).squeeze(-1)
    return Moments(*((v.mean(0), v.std(0)) for v in (z, outputs)))


def row(model: NetworkModel, inference: Inference, data: Context, reference: Moments) -> list[float]:
    """Median error of the mean and ratio of standard deviations, of weights and of the function."""
    with torch_seeded(1), torch.no_grad():
        found = moments(model, inference.update(inference.init(data.batch), data).posterior)
    cells = []
    for (mean, sd), (true_mean, true_sd) in (
        (found.weights, reference.weights),
        (found.function, reference.function),
    ):
        cells += [((mean - true_mean).abs() / true_sd).median().item(), (sd / true_sd).median().item()]
    return cells


def reference(model: NetworkModel, data: Context, *, draws: int, warmup: int) -> Chains:
    """Accepted chains. Raises ReferenceRejected where they have not converged."""
    nuts = NUTS(model, x_dim=1, y_dim=1, draws=draws, warmup=warmup)
    return nuts.update(nuts.init(data.batch), data)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=4, help="of each size, all in one chain (default 4)")
    parser.add_argument("--draws", type=int, default=600, help="of each of 4 chains (default 600)")
    parser.add_argument("--warmup", type=int, default=300, help="of each chain (default 300)")
    parser.add_argument("--hidden", type=int, default=4, help="units of the network (default 4)")
    options = parser.parse_args(arguments)
    started = time.process_time()
    model = network(hidden=options.hidden)
    print("| data | procedure | weights: error of mean | sd ratio | function: error of mean | sd ratio |")
    print("|---|---|---|---|---|---|")
    for size in SIZES:
        data = data_of(model, options.tasks, size)
        try:
            chains = reference(model, data, draws=options.draws, warmup=options.warmup)
        except ReferenceRejected as rejected:
            print(f"| {size} | NUTS | refused: {', '.join(rejected.chains.faults())} | | | |", flush=True)
            continue
        with torch_seeded(0):
            truth = moments(model, chains.posterior)
        for name, inference in procedures(model).items():
            cells = " | ".join(f"{value:.2f}" for value in row(model, inference, data, truth))
            print(f"| {size} | {name} | {cells} |", flush=True)
    print(f"\n{options.tasks} tasks of each size, {time.process_time() - started:.0f} s of CPU")


if __name__ == "__main__":
    main()
