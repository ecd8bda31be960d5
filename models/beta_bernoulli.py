"""Bernoulli arms with Beta priors: the bandit whose posterior is counting."""

import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context


class BetaBernoulliModel(TaskModel):
    """``z_a ~ Beta(alpha_a, beta_a)`` for each arm; pulling arm ``a`` pays ``y ~ Bernoulli(z_a)``.

    ``z [B, A]`` in [0, 1]; ``x [B, N, A]`` is the one-hot code of the pulled arm, ``y [B, N, 1]`` is 0 or 1.
    """

    alpha: Tensor
    beta: Tensor

    def __init__(self, alpha: Float[Tensor, "A"], beta: Float[Tensor, "A"]) -> None:
        super().__init__()
        if not ((alpha > 0) & (beta > 0)).all():
            raise ValueError(f"BetaBernoulliModel: expected alpha, beta > 0 for every arm, got {alpha} and {beta}")
        self.register_buffer("alpha", alpha)
        self.register_buffer("beta", beta)

    @property
    def arms(self) -> int:
        """``A``, the dimension of the latent and the width of ``x``."""
        return self.alpha.shape[0]

    def prior(self, batch: int) -> Distribution:
        return dist.Beta(self.alpha.expand(batch, -1), self.beta.expand(batch, -1)).to_event(1)

    def likelihood(self, z: Float[Tensor, "*S B 1 A"], data: Context) -> Distribution:
        return dist.Bernoulli((data.x * z).sum(-1, keepdim=True)).to_event(1)
