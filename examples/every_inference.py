"""A Pyro model of your own, and every inference procedure on it.

    python examples/every_inference.py

1. Eight schools (Rubin 1981; Gelman et al. 2013, section 5.5): a prior, a likelihood, and then descent, Laplace,
   variational and particle beliefs beside NUTS, all against the posterior by quadrature.
2. Logistic regressions of many tasks at once with a shared prior, against a grid. The same procedures, batched.

Printed: how far a belief's means are from the reference's, in its standard deviations, and how wide it is beside it.
"""

# test: quick

import sys

import pyro.distributions as dist
import torch

from bayesmeta.inference.descent import Adam
from bayesmeta.inference.gradient import GradientDescent
from bayesmeta.inference.grid import grid
from bayesmeta.inference.laplace import Laplace
from bayesmeta.inference.mcmc import NUTS
from bayesmeta.inference.svgd import SVGD
from bayesmeta.inference.variational import VariationalDescent
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context

QUICK = "quick" in sys.argv  # chains on few tasks and not on the schools, where they take minutes
EFFECT = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERROR = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


class EightSchools(TaskModel):
    """mu ~ N(0, 5), tau ~ HalfCauchy(5), theta_j ~ N(mu, tau), y_j ~ N(theta_j, error_j), all from standard normals."""

    def prior(self, batch):
        return dist.Normal(torch.zeros(batch, 10), 1.0).to_event(1)

    def likelihood(self, z, data):  # a datum is one school: x = (which school, its error)
        theta = (self.schools(z) * data.x[..., :8]).sum(-1, keepdim=True)
        return dist.Normal(theta, data.x[..., 8:]).to_event(1)

    @staticmethod
    def schools(z):
        """theta [.., 8] of z [.., 10]."""
        tau = 5 * torch.tan(torch.pi / 2 * torch.special.ndtr(z[..., 1:2]).clamp(max=1 - 1e-6))
        return 5 * z[..., :1] + tau * z[..., 2:]


def procedures(model, x_dim, draws=1000):
    """Everything that works on a model with a prior and a likelihood; chains of ``draws``, none with 0."""
    sizes = {"x_dim": x_dim, "y_dim": 1}
    mode = GradientDescent(model, steps=400, optimizer=Adam(0.05), objective="joint", **sizes)
    found = {
        "mode by descent": mode,
        "Laplace": Laplace(mode, curvature="hessian"),
        "mean field": VariationalDescent(model, steps=800, draws=10, optimizer=Adam(0.02), **sizes),
        "full Gaussian": VariationalDescent(
            model, steps=800, draws=10, optimizer=Adam(0.02), covariance="full", **sizes
        ),
        "50 particles": SVGD(model, particles=50, steps=800, optimizer=Adam(0.05), **sizes),
    }
    if draws:
        found["NUTS"] = NUTS(model, draws=draws, warmup=draws, accept=0.95, **sizes)
    return found


def by_quadrature():
    """Exact means and standard deviations of theta: given mu and tau it is conjugate, and the two are on a grid."""
    u = (torch.arange(400, dtype=torch.float64) + 0.5) / 400  # equal shares of each prior
    mu = (5 * torch.special.ndtri(u)).reshape(-1, 1, 1)
    tau = (5 * torch.tan(torch.pi / 2 * u)).reshape(1, -1, 1)  # HalfCauchy, u its cdf
    variance = tau**2 + ERROR**2
    weight = dist.Normal(mu, variance.sqrt()).log_prob(EFFECT).sum(-1).flatten().softmax(0).reshape(-1, 1)
    mean = ((mu * ERROR**2 + EFFECT * tau**2) / variance).flatten(0, 1)
    spread = (tau**2 * ERROR**2 / variance).expand(400, 400, 8).flatten(0, 1)
    centre = (weight * mean).sum(0)
    return centre, (weight * (spread + mean**2)).sum(0).sub(centre**2).sqrt()


def show(name, mean, sd, reference):
    off, wide = ((mean - reference[0]) / reference[1]).abs().mean(), (sd / reference[1]).mean()
    print(f"{name:<16}  {off:>14.2f}  {wide:>11.2f}")


def eight_schools():
    data = Context.of(torch.cat([torch.eye(8), ERROR.unsqueeze(1)], 1).unsqueeze(0), EFFECT.reshape(1, 8, 1))
    model, reference = EightSchools(), by_quadrature()
    print("posterior means of the schools:", " ".join(f"{m:.2f}" for m in reference[0]))
    found = {}
    for name, inference in procedures(model, 9, 0 if QUICK else 1000).items():
        posterior = inference.update(inference.init(1), data).posterior
        theta = model.schools(posterior.sample((4000,)))[:, 0].detach()
        found[name] = (theta.mean(0), theta.std(0))
        show(name, *found[name], reference)
    return found, reference


class Logistic(TaskModel):
    """y ~ Bernoulli(sigmoid(slope x + intercept)), slope ~ N(1, 1), intercept ~ N(0, 1)."""

    def prior(self, batch):
        return dist.Normal(torch.tensor([1.0, 0.0]).expand(batch, 2), 1.0).to_event(1)

    def likelihood(self, z, data):
        return dist.Bernoulli(logits=z[..., :1] * data.x + z[..., 1:]).to_event(1)


def logistic_regressions(tasks):
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(tasks, 12, 1, generator=generator)
    truth = torch.tensor([1.0, 0.0]) + torch.randn(tasks, 2, generator=generator)
    logits = truth[:, None, :1] * x + truth[:, None, 1:]
    data = Context.of(x, (torch.rand(tasks, 12, 1, generator=generator) < logits.sigmoid()).float())
    model = Logistic()
    exact = grid(model, torch.tensor([-4.0, -5.0]), torch.tensor([6.0, 5.0]), (150, 150), x_dim=1, y_dim=1)
    posterior = exact.update(exact.init(tasks), data).posterior
    reference = posterior.mean, posterior.variance.sqrt()
    found = {}
    for name, inference in procedures(model, 1, 300 if QUICK else 1000).items():
        posterior = inference.update(inference.init(tasks), data).posterior
        found[name] = (posterior.mean.detach(), posterior.variance.sqrt().detach())
        show(name, *found[name], reference)
    return found, reference


def main():
    torch.manual_seed(0)
    print(f"{'eight schools':<16}  {'means off, sds':>14}  {'sds / exact':>11}")
    schools = eight_schools()
    tasks = 4 if QUICK else 20
    print(f"\nlogistic regressions of {tasks} tasks")
    regressions = logistic_regressions(tasks)
    for found, (mean, sd) in (schools, regressions):  # the reference chains are right, to Monte-Carlo error
        if "NUTS" in found:
            assert ((found["NUTS"][0] - mean) / sd).abs().max() < 0.3
            assert (found["NUTS"][1] / sd).log().abs().max() < 0.3
        assert found["mode by descent"][1].max() < 1e-4  # a point


if __name__ == "__main__":
    main()
