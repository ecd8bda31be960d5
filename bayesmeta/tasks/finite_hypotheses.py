"""A hidden goal among finitely many candidates, seen through noisy distances, with the exact filter."""

import math

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.inference.finite import FiniteFilter
from bayesmeta.models.finite import FiniteModel
from bayesmeta.tasks.splits import is_ood
from bayesmeta.types import Context, Spec


class FiniteHypotheses:
    """``finite_hypotheses-v1``: which of ``hypotheses`` points on the unit circle is the goal?

    A datum is a place ``x ~ U[-1.5, 1.5]^2`` and the noisy reward for being there, ``y = -||x - z|| + eps`` with
    ``eps ~ N(0, noise^2)``: the inference problem of a navigation task. The points are equally spaced and equally
    likely. ``ood`` goals are halfway between two candidates, on the circle of radius 1.5.
    """

    def __init__(self, *, hypotheses: int = 8, noise: float = 0.5) -> None:
        if hypotheses < 2 or not noise > 0:
            raise ValueError(f"FiniteHypotheses: expected hypotheses >= 2 and noise > 0, got {hypotheses} and {noise}")
        self.spec = Spec("finite_hypotheses-v1", 2, 1, ("goal_x", "goal_y"))
        self.noise = noise
        points = _on_circle(torch.arange(hypotheses), hypotheses)
        self.model = FiniteModel(points, torch.zeros(hypotheses), self.emission)
        self.exact = FiniteFilter(points, self.model.log_weights, self.model.log_likelihood, x_dim=2, y_dim=1)

    def emission(self, z: Float[Tensor, "*S B 1 2"], x: Float[Tensor, "B N 2"]) -> Distribution:
        """The reward's distribution at ``x`` if the goal is ``z``."""
        return dist.Normal(-torch.linalg.vector_norm(x - z, dim=-1, keepdim=True), self.noise).to_event(1)

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n 2"]:
        """Goals of ``n`` tasks."""
        count = len(self.model.points)
        index = torch.randint(count, (n,), generator=generator, device=generator.device)
        if is_ood(self.spec, split):
            return 1.5 * _on_circle(index + 0.5, count)
        return self.model.points.to(index.device)[index]

    def context(self, params: Float[Tensor, "B 2"], shots: int, generator: torch.Generator) -> Context:
        """``shots`` places and their rewards for each task."""
        x = 3.0 * torch.rand(len(params), shots, 2, generator=generator, device=params.device) - 1.5
        mean = -torch.linalg.vector_norm(x - params.unsqueeze(1), dim=-1, keepdim=True)
        noise = torch.randn(mean.shape, generator=generator, device=params.device)
        return Context.of(x, mean + self.noise * noise)


def _on_circle(index: Tensor, count: int) -> Float[Tensor, "n 2"]:
    angle = index * (2 * math.pi / count)
    return torch.stack([angle.cos(), angle.sin()], -1)
