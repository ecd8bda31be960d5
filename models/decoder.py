"""Neural decoders: the targets of a task by a network that is given the input and the task's latent."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta.models.networks import MLP
from bayesmeta.models.outputs import Output
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context


class Decoder(TaskModel):
    """``z ~ N(0, I)``, ``y_n ~ output(f(x_n, z))`` with an MLP ``f`` of ``widths`` (Garnelo et al. 2018b, section 2).

    The share of ``z`` in the first layer is computed once for a task, not for every datum.
    """

    def __init__(self, x_dim: int, latent_dim: int, output: Output, *, widths: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.latent_dim, self.output = latent_dim, output
        self.net = MLP(x_dim, output.width, widths, z_dim=latent_dim)

    def prior(self, batch: int) -> Distribution:
        zeros = self.net.biases[0].new_zeros(batch, self.latent_dim)
        return dist.Normal(zeros, torch.ones_like(zeros), validate_args=False).to_event(1)

    def likelihood(self, z: Float[Tensor, "*S B 1 D"], data: Context) -> Distribution:
        return self.output(self.outputs(z, data.x))

    def outputs(self, z: Float[Tensor, "*S B 1 D"], x: Float[Tensor, "B N X"]) -> Float[Tensor, "*S B N O"]:
        """The network's outputs for every draw."""
        draws = z.shape[:-3]
        rows = x.expand(*draws, *x.shape).reshape(-1, *x.shape[1:])
        return self.net(rows, z.reshape(-1, self.latent_dim)).view(*draws, *x.shape[:2], self.output.width)


class AttentiveDecoder(TaskModel):
    """A decoder that also attends to the context: the attentive neural process (Kim et al. 2019, section 3).

    ``y_n ~ output(f(x_n, r(x_n), z))``, where ``r(x)`` is multi-head attention of ``x`` over the inputs of the context,
    with embeddings of its data as values. What is attended to is no latent: like the statistics of a normalisation it
    comes with :meth:`given`, and the model by itself is that of a task without context.

    ``width`` is that of keys, queries, values and their networks' hidden layers, a multiple of ``heads``. Differs from
    the authors' code by a key and a value of zeros beside the context's, which are what is attended to without one.
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        latent_dim: int,
        output: Output,
        *,
        widths: Sequence[int] = (64, 64),
        width: int = 64,
        heads: int = 8,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"AttentiveDecoder: expected a width that is a multiple of heads, got {width} and {heads}")
        self.decoder = Decoder(x_dim + width, latent_dim, output, widths=widths)
        self.places = MLP(x_dim, width, (width,))
        self.values = MLP(x_dim + y_dim, width, (width, width))
        self.attention = nn.MultiheadAttention(width, heads, add_zero_attn=True, batch_first=True)
        self.y_dim = y_dim

    def prior(self, batch: int) -> Distribution:
        return self.decoder.prior(batch)

    def likelihood(self, z: Float[Tensor, "*S B 1 D"], data: Context) -> Distribution:
        nothing = Context(data.x[:, :0], data.x.new_zeros(data.batch, 0, self.y_dim), data.mask[:, :0])
        return self.attending(z, data, nothing)

    def given(self, support: Context) -> TaskModel:
        """The model of tasks with these data as context."""
        return _Given(self, support)

    def attending(self, z: Float[Tensor, "*S B 1 D"], data: Context, support: Context) -> Distribution:
        """The likelihood of tasks with the support as context."""
        x = torch.cat([data.x, self.attended(data.x, support)], -1)
        return self.decoder.likelihood(z, Context(x, data.y, data.mask))

    def attended(self, x: Float[Tensor, "B N X"], support: Context) -> Float[Tensor, "B N R"]:
        """``r(x)`` of every input."""
        padding = ~support.mask
        rows = torch.cat([support.x, support.y], -1).masked_fill(padding.unsqueeze(-1), 0.0)
        places = self.places(torch.cat([x, rows[..., : x.shape[-1]]], 1))
        queries, keys = places.split([x.shape[1], support.size], 1)
        values = self.values(rows)
        return self.attention(queries, keys, values, key_padding_mask=padding, need_weights=False)[0]


class _Given(TaskModel):
    """An attentive decoder and the data that it attends to."""

    def __init__(self, model: AttentiveDecoder, support: Context) -> None:
        super().__init__()
        self.model, self.support = model, support

    def prior(self, batch: int) -> Distribution:
        return self.model.prior(batch)

    def likelihood(self, z: Float[Tensor, "*S B 1 D"], data: Context) -> Distribution:
        return self.model.attending(z, data, self.support)
