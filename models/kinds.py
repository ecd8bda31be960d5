"""A value that is of one of several kinds, each with a law of its own, as one distribution."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints


class OneOfKinds(TorchDistribution):
    """A kind ``k``, drawn with its probability, and a value drawn from ``laws[k]``: event ``[D + 1]``, ``(k, value)``.

    Batch ``[*b]``; ``log_weights [*b, K]`` up to a constant; each of the ``K`` laws has batch ``[*b]`` and event
    ``[D]``. ``log_prob`` is the log probability of the kind plus the log density of the value under its law: -inf where
    the first coordinate is no kind.
    """

    arg_constraints: ClassVar[dict] = {}
    has_rsample = False
    support = constraints.real_vector

    def __init__(self, log_weights: Float[Tensor, "*b K"], laws: Sequence[Distribution]) -> None:
        self.log_weights, self.laws = log_weights.log_softmax(-1), tuple(laws)
        event = torch.Size((laws[0].event_shape[0] + 1,))
        super().__init__(log_weights.shape[:-1], event, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "OneOfKinds":
        log_weights = self.log_weights.expand(*batch_shape, -1)
        return OneOfKinds(log_weights, [law.expand(torch.Size(batch_shape)) for law in self.laws])

    @property
    def weights(self) -> Float[Tensor, "*b K"]:
        """Probabilities of the kinds."""
        return self.log_weights.exp()

    @property
    def mean(self) -> Tensor:
        means = torch.stack([law.mean for law in self.laws], -1)
        return self._with_kind((self.weights.unsqueeze(-2) * means).sum(-1), self._kind_mean)

    @property
    def variance(self) -> Tensor:
        """Within and between the kinds."""
        weights = self.weights.unsqueeze(-2)
        means, variances = (torch.stack([getattr(law, m) for law in self.laws], -1) for m in ("mean", "variance"))
        between = (means - (weights * means).sum(-1, keepdim=True)).square()
        kind = (self.weights * (self._kinds - self._kind_mean.unsqueeze(-1)).square()).sum(-1)
        return self._with_kind((weights * (variances + between)).sum(-1), kind)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        flat = torch.multinomial(self.weights.flatten(0, -2), shape.numel(), replacement=True)
        kind = flat.reshape(*self.batch_shape, shape.numel()).movedim(-1, 0).reshape(*shape, *self.batch_shape)
        values = torch.stack([law.sample(shape) for law in self.laws], -1)
        index = kind[..., None, None].expand(*values.shape[:-1], 1)
        return self._with_kind(values.gather(-1, index).squeeze(-1), kind.to(values))

    def log_prob(self, value: Tensor) -> Tensor:
        each = torch.stack([law.log_prob(value[..., 1:]) for law in self.laws], -1) + self.log_weights
        return torch.where(value[..., :1] == self._kinds, each, -torch.inf).logsumexp(-1)

    @property
    def _kinds(self) -> Float[Tensor, "K"]:
        return torch.arange(len(self.laws), dtype=self.log_weights.dtype, device=self.log_weights.device)

    @property
    def _kind_mean(self) -> Tensor:
        return (self.weights * self._kinds).sum(-1)

    @staticmethod
    def _with_kind(value: Tensor, kind: Tensor) -> Tensor:
        return torch.cat([kind.unsqueeze(-1), value], -1)
