"""Is a guide that someone wrote by hand the posterior it claims to be?

    python examples/check_a_guide.py

A line through noisy points: intercept and slope unknown. The guide is the textbook posterior of each coordinate on its
own, which looks right: every marginal is. ``check`` says what is wrong with it, and passes the repaired one. The report
with all figures is written to ``runs/check_a_guide``.
"""

# test:

import sys

import pyro
import pyro.distributions as dist
import torch

from bayesmeta.diagnostics import check
from bayesmeta.models.task_model import TaskModel
from bayesmeta.tasks.model_family import ModelFamily
from bayesmeta.types import Context

NOISE = 0.5


class Line(TaskModel):
    """``y = z_0 + z_1 x + noise``, ``z ~ N(0, I)``."""

    def prior(self, batch):
        return dist.Normal(torch.zeros(batch, 2), 1.0).to_event(1)

    def likelihood(self, z, data):
        return dist.Normal(z[..., :1] + z[..., 1:] * data.x, NOISE).to_event(1)


def inputs(batch, shots, generator):
    """Points to the right of the origin, where intercept and slope are hard to tell apart."""
    return 1.0 + torch.rand(batch, shots, 1, generator=generator)


def moments(data: Context) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean ``[B, 2]`` and covariance ``[B, 2, 2]`` of the posterior of a linear-Gaussian model."""
    design = torch.cat([torch.ones_like(data.x), data.x], -1) * data.mask.unsqueeze(-1)
    covariance = torch.linalg.inv(torch.eye(2) + design.mT @ design / NOISE**2)
    return (covariance @ design.mT @ data.y / NOISE**2).squeeze(-1), covariance


def marginals(data: Context):
    """The guide: the right mean and standard deviation of each coordinate, as if they were independent."""
    mean, covariance = moments(data)
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    with pyro.plate("task", data.batch, dim=-2):
        pyro.sample("z", dist.Normal(mean.unsqueeze(1), sd.unsqueeze(1)).to_event(1))


def joint(data: Context):
    """The repaired guide."""
    mean, covariance = moments(data)
    with pyro.plate("task", data.batch, dim=-2):
        pyro.sample("z", dist.MultivariateNormal(mean.unsqueeze(1), covariance.unsqueeze(1)))


def main() -> int:
    family = ModelFamily(Line(), inputs, name="line")
    wrong, right = (check(guide, family, sizes=(1, 10), tasks=200) for guide in (marginals, joint))
    print(f"As written:\n{wrong}\n\nRepaired:\n{right}")
    for verdict in wrong.verdicts:
        if verdict.outcome == "failed":
            print(f"\n{verdict.question} {verdict.meaning}")
    print(f"\nreport: {wrong.save('runs/check_a_guide')[1]}")
    return 0 if right.passed and not wrong.passed else 1


if __name__ == "__main__":
    sys.exit(main())
