"""Recurrent double deep Q-learning on whole episodes: pure functions of values at every step."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def previous_actions(action: Float[Tensor, "B T A"]) -> Float[Tensor, "B T1 A"]:
    """The action before each of the ``T + 1`` observations of an episode: none, that is 0, before the first."""
    return torch.cat([torch.zeros_like(action[:, :1]), action], 1)


def double_q_target(
    online: Float[Tensor, "B T1 A"],
    target: Float[Tensor, "B T1 A"],
    reward: Float[Tensor, "B T"],
    last: Bool[Tensor, "B T"],
    discount: float,
) -> Float[Tensor, "B T"]:
    """``r_t + discount Q_target(s_{t+1}, argmax_a Q_online(s_{t+1}, a))``, without the second term where ``last``.

    van Hasselt, Guez and Silver 2016, equation 4. ``online`` and ``target`` are values at all ``T + 1`` observations of
    an episode. No gradient flows into the result.
    """
    best = online[:, 1:].detach().argmax(-1, keepdim=True)
    following = target[:, 1:].detach().gather(-1, best).squeeze(-1)
    return reward + discount * following.masked_fill(last, 0.0)


def td_error(
    q: Float[Tensor, "B T A"], action: Float[Tensor, "B T A"], y: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B"]:
    """The squared error of each episode, whose mean over episodes is the mean over all real steps."""
    error = ((q * action).sum(-1) - y).square().masked_fill(~mask, 0.0).sum(1)
    return error * (len(mask) / mask.sum().clamp_min(1))
