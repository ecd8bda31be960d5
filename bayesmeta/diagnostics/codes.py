r"""Codes of finitely many problems: which problem a code stands for, and what is known of it when the problem is not.

Who is told a problem ``mu`` knows its code, ``F(z | mu)``. Who has explored knows of the problem ``p(mu | tau)`` and of
its code, if the inference is exact,

    p(z | tau) = \sum_\mu p(mu | tau) F(z | mu),

which is what a belief ``q(z | tau)`` about the code approximates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from bayesmeta.inference.beliefs import Weighted
from bayesmeta.inference.finite import FiniteFilter
from bayesmeta.types import Context


class CodeMixture(TorchDistribution):
    """One of the codes of ``P`` problems, batch ``[B]``, event ``[D]``.

    ``code`` are the laws of the codes, diagonal Gaussians of batch ``[P]``; ``log_weights [B, P]`` are each task's log
    odds of the problems.
    """

    arg_constraints: ClassVar[dict] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, code: Distribution, log_weights: Float[Tensor, "B P"]) -> None:
        self.code, self.log_weights = code, log_weights.log_softmax(-1)
        super().__init__(log_weights.shape[:-1], code.event_shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.log_weights.exp() @ self.code.mean

    @property
    def variance(self) -> Tensor:
        apart = (self.code.mean - self.mean.unsqueeze(-2)).square()
        return (self.log_weights.exp().unsqueeze(-1) * (self.code.variance + apart)).sum(-2)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        count = torch.Size(sample_shape).numel()
        problem = torch.multinomial(self.log_weights.exp(), count, replacement=True).T
        mean, sd = self.code.mean[problem], self.code.stddev[problem]
        return (mean + sd * torch.randn_like(mean)).reshape(self._extended_shape(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        return (log_densities(self.code, value) + self.log_weights).logsumexp(-1).to(value.dtype)


def log_densities(code: Distribution, z: Float[Tensor, "*S D"]) -> Float[Tensor, "*S P"]:
    """The log density of every value under the code of every problem, in double precision.

    The squares are written as products: many values under many codes would be too large to subtract one by one.
    """
    mean, precision, z = code.mean.double(), code.variance.double().reciprocal(), z.double()
    square = z.square() @ precision.mT - 2.0 * z @ (mean * precision).mT + (mean.square() * precision).sum(-1)
    constant = 0.5 * (mean.shape[-1] * math.log(2 * math.pi) - precision.log().sum(-1))
    return -0.5 * square - constant


@dataclass(frozen=True)
class CodeBelief:
    """What is known of the problem, and hence of its code."""

    problems: Weighted
    code: Distribution

    @property
    def posterior(self) -> CodeMixture:
        return CodeMixture(self.code, self.problems.log_weights)


class CodePosterior:
    """The exact posterior of the code, from that of the problem: a filter, as the one over the problems is.

    ``code`` are the codes of the filter's points in their order.
    """

    def __init__(self, problems: FiniteFilter, code: Distribution) -> None:
        self.problems, self.code = problems, code

    def init(self, batch: int) -> CodeBelief:
        return CodeBelief(self.problems.init(batch), self.code)

    def update(self, belief: CodeBelief, data: Context) -> CodeBelief:
        """The belief after also seeing ``data``. Raises ValueError where no problem fits them."""
        return CodeBelief(self.problems.update(belief.problems, data), self.code)

    def scan(self, belief: CodeBelief, data: Context) -> CodeBelief:
        """The beliefs at every prefix, batch ``(N + 1) B``: row ``n B + b`` is task ``b`` after ``n`` rows."""
        return CodeBelief(self.problems.scan(belief.problems, data), self.code)
