"""Soft actor-critic (Haarnoja et al. 2018b, learned temperature, no value network), batched over tasks.

All functions take rows ``[B, R, .]`` of ``B`` tasks and one latent ``z [B, Z]`` per task. ``policy(obs, z)`` returns a
distribution with ``rsample_with_log_prob``; ``critics(obs, action, z)`` returns ``[E, B, R]``.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from bayesmeta.types import Transitions


@torch.no_grad()
def soft_target(
    policy: nn.Module,
    target: nn.Module,
    batch: Transitions,
    z: Float[Tensor, "B Z"],
    *,
    temperature: Float[Tensor, ""],
    discount: float,
    reward_scale: float,
) -> Float[Tensor, "B R"]:
    """``y = c r + gamma (1 - d) (min_i Q'_i(s', a', z) - alpha log pi(a' | s', z))``, ``a' ~ pi``.

    No gradient leaves it, not even through ``z``. A time limit is not a terminal state.
    """
    action, log_prob = policy(batch.next_obs, z).rsample_with_log_prob()
    value = target(batch.next_obs, action, z).amin(0) - temperature * log_prob
    return reward_scale * batch.training_reward + discount * (~batch.terminated) * value


def td_error(
    critics: nn.Module, batch: Transitions, z: Float[Tensor, "B Z"], y: Float[Tensor, "B R"]
) -> Float[Tensor, "B"]:
    """``sum_i mean_rows (Q_i(s, a, z) - y)^2`` of each task. Gradients reach the critics and ``z``."""
    return (critics(batch.obs, batch.action, z) - y).square().mean(-1).sum(0)


def policy_loss(
    policy: nn.Module,
    critics: nn.Module,
    obs: Float[Tensor, "B R S"],
    z: Float[Tensor, "B Z"],
    *,
    temperature: Float[Tensor, ""],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """``mean(alpha log pi - min_i Q_i)`` and the mean ``log pi``. ``z`` is detached: no gradient reaches inference.

    The critics are the objective here, not learners: their parameters are detached too.
    """
    z = z.detach()
    # Autograd prunes what nobody asked for, but not inside a custom function: detached, no weight gradient is computed.
    fixed = {name: parameter.detach() for name, parameter in critics.named_parameters()}
    action, log_prob = policy(obs, z).rsample_with_log_prob()
    value = functional_call(critics, fixed, (obs, action, z)).amin(0)
    return (temperature * log_prob - value).mean(), log_prob.detach().mean()


@torch.no_grad()
def polyak(target: nn.Module, online: nn.Module, rate: float) -> None:
    """``target <- (1 - rate) target + rate online``, parameter by parameter."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """One optimiser step on ``loss`` for exactly these parameters; nothing else receives a gradient.

    Returns the gradients.
    """
    parameters = list(parameters)
    gradients = torch.autograd.grad(loss, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        # The fused CPU optimiser reads gradients in memory order: a transposed one would be applied scrambled.
        parameter.grad = gradient.contiguous()
    optimizer.step()
    return list(gradients)
