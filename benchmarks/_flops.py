"""Floating-point operations of the matrix products of one PEARL update, from layer sizes: two per multiply-add.

``forward`` of a stack of layers on ``rows`` rows is ``2 rows sum_l in_l out_l``; its weight gradients cost the same
again, and the gradients of its layers' inputs the same but for the first layer, whose input is data unless said
otherwise. What is not a matrix product (activations, Adam, sums) is not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class UpdateSize:
    """What determines the cost of an update: rows, tasks, and layer sizes."""

    tasks: int
    rl_batch: int
    context_batch: int
    obs_dim: int
    action_dim: int
    latent_dim: int
    widths: tuple[int, ...]
    encoder_widths: tuple[int, ...]

    @property
    def rows(self) -> int:
        return self.tasks * self.rl_batch

    @property
    def encoder(self) -> tuple[int, ...]:
        return (self.obs_dim + self.action_dim + 1, *self.encoder_widths, 2 * self.latent_dim)


def forward(rows: int, sizes: Sequence[int]) -> int:
    """Also the cost of all weight gradients."""
    return 2 * rows * sum(i * o for i, o in zip(sizes[:-1], sizes[1:], strict=True))


def inputs(rows: int, sizes: Sequence[int], *, first: bool) -> int:
    """Gradients of every layer's input, with or without the first layer's."""
    return forward(rows, sizes if first else sizes[1:])


def looped(size: UpdateSize) -> int:
    """The organisation of the published implementation: latents concatenated to every row."""
    rows, hidden = size.rows, size.widths
    q = (size.obs_dim + size.action_dim + size.latent_dim, *hidden, 1)
    v = (size.obs_dim + size.latent_dim, *hidden, 1)
    policy = (size.obs_dim + size.latent_dim, *hidden, 2 * size.action_dim)
    forwards = 4 * forward(rows, q) + 2 * forward(rows, v) + forward(rows, policy)
    critics = 2 * (forward(rows, q) + inputs(rows, q, first=True))  # the first layer's carries z
    value = forward(rows, v) + inputs(rows, v, first=False)
    actor = forward(rows, policy) + inputs(rows, policy, first=False)
    through_critics = 2 * (forward(rows, q) + inputs(rows, q, first=True))  # weight gradients nobody uses
    context, encoder = size.tasks * size.context_batch, size.encoder
    encoding = forward(context, encoder)
    decoding = 2 * (forward(context, encoder) + inputs(context, encoder, first=False))  # of the KL, of the critics
    return forwards + critics + value + actor + through_critics + encoding + decoding


def batched(size: UpdateSize) -> int:
    """This library: no value network, the latent's share of a first layer once per task, no gradient but those used.

    For the diagonal encoder; a full covariance adds a product of ``[latent, context]`` matrices per task.
    """
    rows, tasks, hidden = size.rows, size.tasks, size.widths
    share = forward(tasks, (size.latent_dim, hidden[0]))
    q = (size.obs_dim + size.action_dim, *hidden, 1)
    policy = (size.obs_dim, *hidden, 2 * size.action_dim)
    forwards = 6 * (forward(rows, q) + share) + 2 * (forward(rows, policy) + share)  # critics: target, error, actor
    critics = 2 * (forward(rows, q) + inputs(rows, q, first=False) + 2 * share)
    actor = forward(rows, policy) + inputs(rows, policy, first=False) + share
    through_critics = 2 * inputs(rows, q, first=True)
    context, encoder = tasks * size.context_batch, size.encoder
    encoding = 2 * forward(context, encoder) + inputs(context, encoder, first=False)
    return forwards + critics + actor + through_critics + encoding
