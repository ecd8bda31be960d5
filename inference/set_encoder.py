r"""The mean of learned embeddings as the belief: the encoder of neural processes (Garnelo et al. 2018a, 2018b).

Every datum is embedded by one network, the embeddings are averaged, and the posterior is read off their mean. Order and
padding do not matter, but a mean cannot see how many data it is of: a context and the same context twice give the same
belief to the last bit, where Bayes' rule contracts. What adds evidence instead is
:class:`~bayesmeta.inference.product.ProductOfGaussians` with the prior as a factor, known for neural processes as
Bayesian aggregation (Volpp et al. 2021).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta.inference.evidence import checked
from bayesmeta.models.networks import MLP
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context, Inference


@dataclass(frozen=True)
class Pooled:
    """What the mean of embeddings says of the latent, and what that mean is made of, to which further data are added.

    ``total [B, H]`` is the sum of the embeddings, ``count [B]`` their number; ``mean [B, D]``, and ``sd [B, D]`` > 0 or
    None for a point.
    """

    total: Float[Tensor, "B H"]
    count: Float[Tensor, "B"]
    mean: Float[Tensor, "B D"]
    sd: Float[Tensor, "B D"] | None

    @property
    def posterior(self) -> Distribution:
        if self.sd is None:
            return dist.Delta(self.mean, event_dim=1)
        return dist.Normal(self.mean, self.sd, validate_args=False).to_event(1)


class MeanEncoder(nn.Module):
    r"""``q(z | c) = N(mu(r), sigma(r)^2)`` with ``r = 1/N \sum_n h(x_n, y_n)``, and N(0, I) where there are no data.

    ``h`` is an MLP of ``widths`` with as many outputs as the last of them; ``mu, sigma`` come from one hidden layer of
    that width, with ``sigma = least + (1 - least) sigmoid(.)`` in ``[least, 1]`` as in the code of Kim et al. 2019 with
    0.1 for ``least``, which is no bound on what is said of the task, since the means may be any distance apart. With
    ``point`` the latent is ``r`` itself, the belief is that point, and 0 without data (a conditional neural process).

    Breaks the law of contraction and Bayes' rule by construction: see the module. Gradients flow through the belief
    into both networks. Raises ValueError for ``least`` outside [0, 1) and for no ``widths``.
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        latent_dim: int,
        *,
        widths: Sequence[int] = (64, 64),
        point: bool = False,
        least: float = 0.1,
    ) -> None:
        super().__init__()
        if not 0 <= least < 1 or not widths:
            raise ValueError(f"MeanEncoder: expected 0 <= least < 1 and at least one width, got {least} and {widths}")
        self.x_dim, self.y_dim, self.latent_dim, self.least = x_dim, y_dim, latent_dim, least
        width = latent_dim if point else widths[-1]
        self.net = MLP(x_dim + y_dim, width, widths)
        self.head = None if point else MLP(width, 2 * latent_dim, (width,))

    def init(self, batch: int) -> Pooled:
        """N(0, I), or the point 0."""
        bias = self.net.biases[-1]
        zeros = bias.new_zeros(batch, self.latent_dim)
        sd = None if self.head is None else torch.ones_like(zeros)
        return Pooled(bias.new_zeros(batch, bias.shape[-1]), bias.new_zeros(batch), zeros, sd)

    def update(self, belief: Pooled, data: Context) -> Pooled:
        """The belief after also seeing ``data``. Raises ValueError on data of a wrong shape or not finite."""
        data = checked("MeanEncoder", data, batch=len(belief.count), x_dim=self.x_dim, y_dim=self.y_dim)
        real = data.mask.to(belief.total.dtype)
        total = belief.total
        if data.size:
            embedded = self.net(torch.cat([data.x, data.y], -1))
            total = total + (embedded * real.unsqueeze(-1)).sum(1)
        count = belief.count + real.sum(1)
        pooled, some = total / count.clamp_min(1.0).unsqueeze(-1), (count > 0).unsqueeze(-1)
        if self.head is None:
            return Pooled(total, count, pooled, None)
        mean, raw = self.head(pooled).chunk(2, -1)
        sd = self.least + (1.0 - self.least) * raw.sigmoid()
        return Pooled(total, count, mean * some, torch.where(some, sd, torch.ones_like(sd)))


class Amortised(nn.Module):
    """An encoder as the inference of a model: trained together, they are one set of parameters.

    ``encoder`` is any procedure whose latent is the model's, such as :class:`MeanEncoder`. Raises ValueError where the
    two have latents of different sizes.
    """

    def __init__(self, model: TaskModel, encoder: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.encoder: Inference | Any = encoder
        shapes = [tuple(law.event_shape) for law in (self.init(1).posterior, model.prior(1))]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"Amortised: expected an encoder of the model's latent {shapes[1]}, got one of {shapes[0]}"
            )

    def init(self, batch: int) -> Any:
        """The encoder's belief without data."""
        return self.encoder.init(batch)

    def update(self, belief: Any, data: Context) -> Any:
        """The encoder's belief after also seeing ``data``."""
        return self.encoder.update(belief, data)
