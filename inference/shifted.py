r"""Noise first, then gradient descent: the sampler of PLATIPUS (Finn, Xu and Levine 2018, algorithms 1 and 2).

    theta ~ p(theta | data) = N(mu - rate grad l(mu; data), diag(sigma^2)),   z = k steps of descent on l from theta

The noise comes from training, not from the data. On a quadratic loss with Hessian ``H`` the draws have the covariance
``A diag(sigma^2) A^T`` with ``A = (I - alpha H)^k``, which is not the posterior's: it vanishes as ``k`` grows, in every
direction that the data say anything about, while the posterior's does not.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from bayesmeta.inference.descent import descend, gradient
from bayesmeta.inference.evidence import checked
from bayesmeta.inference.gradient import GradientDescent, refuse_padding
from bayesmeta.inference.particles import Particles, log_densities, log_mixture, unmoved_without_data
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context, concat, map_tensors


class ShiftedStart(nn.Module):
    r"""Draws of a start shifted by one gradient, from each of which ``descent`` goes its steps.

    ``mu`` and ``sigma`` are the mean and standard deviation of the model's prior, of which nothing else is used. The
    belief is ``particles`` draws, whose noise is the same for all tasks and follows from ``seed``; :meth:`sample` gives
    as many as wanted with noise of their own. ``l`` is the loss of ``descent``.

    ``proposal`` is the variational ``q(theta | data) = N(mu - proposal_rate grad l(mu; data), v)`` that only
    meta-training uses, with ``proposal_scale`` > 0 the initial standard deviation, a parameter for each coordinate. The
    rates are parameters and may become negative. Gradients flow through everything, unless ``descent`` is of first
    order.

    Obeys the filter law because it starts anew from all data; its belief is points, which have no density.
    """

    noise: Tensor

    def __init__(
        self,
        descent: GradientDescent,
        *,
        particles: int = 10,
        rate: float = 0.01,
        proposal_rate: float = 0.01,
        proposal_scale: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if particles < 1 or not proposal_scale > 0:
            raise ValueError(
                f"ShiftedStart: expected particles >= 1 and proposal_scale > 0, got {particles} and {proposal_scale}"
            )
        mean = descent.model.prior(1).mean[0].detach()
        self.descent = descent
        self.rate = nn.Parameter(mean.new_tensor(rate))
        self.proposal_rate = nn.Parameter(mean.new_tensor(proposal_rate))
        self.proposal_log_scale = nn.Parameter(torch.full_like(mean, math.log(proposal_scale)))
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("noise", torch.randn(particles, len(mean), generator=generator).to(mean))

    @property
    def model(self) -> TaskModel:
        return self.descent.model

    def init(self, batch: int) -> Particles:
        """Draws of the model's prior, as far as its mean and standard deviation say."""
        nothing = Context.empty(batch, self.descent.x_dim, self.descent.y_dim, self.noise.device)
        return Particles(self._starts(nothing), nothing)

    def update(self, belief: Particles, data: Context) -> Particles:
        """The draws given the belief's data and ``data`` together, from the prior on.

        Raises ValueError on data of a wrong shape or not finite, and on padding where a network mixes rows.
        """
        descent = self.descent
        data = checked("ShiftedStart", data, batch=len(belief.z), x_dim=descent.x_dim, y_dim=descent.y_dim)
        refuse_padding("ShiftedStart", self.model, data)
        seen = concat([belief.data, data])
        start = self._starts(seen)
        return Particles(unmoved_without_data(start, self.descended(start, seen), seen), seen)

    def start(self, data: Context) -> Independent:
        """``p(theta | data)``: batch ``[B]``, event ``[D]``."""
        prior = self.model.prior(data.batch)
        return Independent(Normal(self._shifted(self.rate, data), prior.stddev, validate_args=False), 1)

    def proposal(self, data: Context) -> Independent:
        """``q(theta | data)``: batch ``[B]``, event ``[D]``."""
        mean = self._shifted(self.proposal_rate, data)
        return Independent(Normal(mean, self.proposal_log_scale.exp().expand_as(mean), validate_args=False), 1)

    def descended(self, start: Float[Tensor, "B L D"], data: Context) -> Float[Tensor, "B L D"]:
        """Where descent on ``data`` leads from each start."""
        if not data.size:
            return start
        descent, count = self.descent, start.shape[1]
        repeated = map_tensors(data, lambda value: value.repeat_interleave(count, 0))
        return descend(
            lambda z: descent.loss(z, repeated),
            start.flatten(0, 1),
            descent.optimizer,
            descent.steps,
            first_order=descent.first_order,
            checkpointed=descent.checkpointed,
        ).view_as(start)

    def sample(self, data: Context, draws: int) -> Float[Tensor, "B L D"]:
        """``draws`` latents of each task after ``data``, independent given it; gradients flow through them."""
        start = self.start(data).rsample(torch.Size((draws,))).transpose(0, 1)
        return self.descended(start, data)

    def log_predictive(self, support: Context, query: Context, *, transductive: bool = True) -> Float[Tensor, "B Q"]:
        """``log 1/L sum_l p(y | x, z_l)`` of the queries over the belief's draws after ``support``; 0 under the mask.

        ``transductive`` says whether a network that normalises over rows does so over the queries together, or with the
        support's statistics.
        """
        z = self.update(self.init(support.batch), support).z
        return log_mixture(log_densities(self.model, z, query, support=None if transductive else support))

    def _starts(self, data: Context) -> Float[Tensor, "B L D"]:
        law = self.start(data).base_dist
        return law.mean.unsqueeze(1) + law.stddev.unsqueeze(1) * self.noise

    def _shifted(self, rate: Tensor, data: Context) -> Float[Tensor, "B D"]:
        mean = self.model.prior(data.batch).mean
        if not data.size:
            return mean
        descent = self.descent
        return mean - rate * gradient(lambda z: descent.loss(z, data), mean, differentiable=not descent.first_order)
