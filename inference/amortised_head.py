"""Amortised posterior of a linear classifier, one class at a time: VERSA's inference (Gordon et al. 2019)."""

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta.inference.evidence import checked
from bayesmeta.models.architectures import mlp
from bayesmeta.models.class_head import ClassHead
from bayesmeta.types import Context, concat


@dataclass(frozen=True)
class Heads:
    """Independent Gaussian weights of every class, ``mean`` and ``sd [B, ways (F + 1)]``, and the data they are of."""

    mean: Float[Tensor, "B D"]
    sd: Float[Tensor, "B D"]
    data: Context

    @property
    def posterior(self) -> Distribution:
        return dist.Normal(self.mean, self.sd, validate_args=False).to_event(1)


class AmortisedHead(nn.Module):
    """A Gaussian over weights and bias of each class, by networks that read the mean of the features of its data.

    A class depends on no other, so that the order of classes does not matter; one without data has the model's prior
    N(0, I). Four networks with two hidden ELU layers of ``F`` give the means and log variances of weights and bias, as
    published. Being a mean, what they read does not know of how many data it is: breaks the law of contraction and
    Bayes' rule. Gradients flow into the networks and the model's features.

    ``update`` reads all data anew, because features may be normalised over the rows of a task; it then raises
    ValueError for padding. Raises ValueError, too, on data of a wrong shape, not finite, or not one-hot.
    """

    def __init__(self, model: ClassHead, *, x_dim: int) -> None:
        super().__init__()
        self.model, self.x_dim = model, x_dim
        width = model.feature_dim
        self.weight_mean, self.weight_log_variance, self.bias_mean, self.bias_log_variance = (
            mlp(width, out, (width, width), activation="elu") for out in (width, width, 1, 1)
        )

    def init(self, batch: int) -> Heads:
        """The model's prior."""
        prior = self.model.prior(batch)
        nothing = Context.empty(batch, self.x_dim, self.model.ways, prior.mean.device)
        return Heads(prior.mean, prior.stddev, nothing)

    def update(self, belief: Heads, data: Context) -> Heads:
        """The belief of the belief's data and ``data`` together."""
        data = checked("AmortisedHead", data, batch=len(belief.mean), x_dim=self.x_dim, y_dim=self.model.ways)
        self._check(data)
        seen, prior = concat([belief.data, data]), self.model.prior(len(belief.mean))
        if not seen.size:
            return Heads(prior.mean, prior.stddev, seen)
        labels = seen.y.mT  # [B, ways, N], zero where padded
        count = labels.sum(-1, keepdim=True)
        pooled = labels @ self.model.featurised(seen.x) / count.clamp_min(1.0)
        mean = torch.cat([self.weight_mean(pooled), self.bias_mean(pooled)], -1)
        log_variance = torch.cat([self.weight_log_variance(pooled), self.bias_log_variance(pooled)], -1)
        known = (count > 0).expand_as(mean).flatten(1)
        sd = torch.where(known, (0.5 * log_variance).exp().flatten(1), prior.stddev)
        return Heads(torch.where(known, mean.flatten(1), prior.mean), sd, seen)

    def _check(self, data: Context) -> None:
        if self.model.mixes_rows and not bool(data.mask.all()):
            raise ValueError(
                f"AmortisedHead: expected no padding, since the features are normalised over the rows of a task, got "
                f"{int((~data.mask).sum())} padded rows; give every task as many data, or other features"
            )
        binary = ((data.y == 0) | (data.y == 1)).all(-1) & (data.y.sum(-1) == data.mask)
        if not binary.all():
            raise ValueError(
                "AmortisedHead: expected y one-hot in the class of a datum, got other values; encode classes with "
                "torch.nn.functional.one_hot"
            )
