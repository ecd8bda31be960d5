"""The yardstick of the update benchmark: PEARL organised as its published implementation is, in own code.

What it keeps of that organisation, since that is what is being timed (Rakelly et al. 2019 and its released code, read
for its structure only): a Python loop over the tasks of a meta-batch for replay, for the product of Gaussians, for the
posterior draws and for the KL; z repeated over the rows and concatenated to every network's input; Q1, Q2, V, target V
and policy as separate modules; seven forward passes; a backward pass of the KL, of the critics, of V and of the policy,
the last of which also computes the critics' weight gradients that nobody uses; five Adam optimisers, not fused.
"""

import copy
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

LR, DISCOUNT, REWARD_SCALE, KL_WEIGHT, TARGET_RATE = 3e-4, 0.99, 100.0, 0.1, 0.005
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


def mlp(sizes: list[int]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for i, o in pairwise(sizes):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class TaskBuffer:
    """Preallocated arrays of one task's transitions."""

    def __init__(self, capacity: int, obs_dim: int, action_dim: int) -> None:
        self.obs, self.next_obs = np.zeros((capacity, obs_dim)), np.zeros((capacity, obs_dim))
        self.action = np.zeros((capacity, action_dim))
        self.reward, self.terminal = np.zeros((capacity, 1)), np.zeros((capacity, 1), dtype=np.uint8)

    def fill(self, generator: np.random.Generator) -> None:
        """Noise of the size of real data: what is timed does not depend on the values."""
        for array in (self.obs, self.action, self.reward, self.next_obs):
            array[:] = generator.uniform(-1.0, 1.0, array.shape)

    def draw(self, rows: int, generator: np.random.Generator) -> list[Tensor]:
        """``obs, action, reward, next_obs, terminal`` of random rows, each ``[1, rows, .]``."""
        index = generator.integers(0, len(self.reward), rows)
        arrays = (self.obs, self.action, self.reward, self.next_obs, self.terminal)
        return [torch.from_numpy(array[index]).float()[None] for array in arrays]


class LoopedPEARL:
    """One update of PEARL with the old soft actor-critic (value network, fixed temperature 1)."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        *,
        latent_dim: int,
        width: int,
        encoder_width: int,
        rl_batch: int,
        context_batch: int,
        tasks: int = 80,
        rows: int = 800,
    ) -> None:
        self.rl_batch, self.context_batch, self.latent_dim = rl_batch, context_batch, latent_dim
        hidden = [width] * 3
        self.encoder = mlp([obs_dim + action_dim + 1, *[encoder_width] * 3, 2 * latent_dim])
        self.q1 = mlp([obs_dim + action_dim + latent_dim, *hidden, 1])
        self.q2 = mlp([obs_dim + action_dim + latent_dim, *hidden, 1])
        self.v = mlp([obs_dim + latent_dim, *hidden, 1])
        self.target_v = copy.deepcopy(self.v)
        self.policy = mlp([obs_dim + latent_dim, *hidden, 2 * action_dim])
        learners = (self.encoder, self.q1, self.q2, self.v, self.policy)
        self.optimizers = [torch.optim.Adam(net.parameters(), lr=LR, foreach=False, fused=False) for net in learners]
        self.generator = np.random.default_rng(0)
        self.buffers = [TaskBuffer(rows, obs_dim, action_dim) for _ in range(tasks)]
        for buffer in self.buffers:
            buffer.fill(self.generator)

    def update(self, tasks: list[int]) -> None:
        """One gradient step of everything."""
        encoder_opt, q1_opt, q2_opt, v_opt, policy_opt = self.optimizers
        obs, action, reward, next_obs, terminal = (x.flatten(0, 1) for x in self._rows(tasks, self.rl_batch))
        mean, variance = self.posterior(self._context(tasks))
        z = torch.cat([draw.repeat(self.rl_batch, 1) for draw in self._draws(mean, variance)])
        fixed_z = z.detach()

        new_action, log_prob, loc, log_std = self._act(obs, fixed_z)
        q1 = self.q1(torch.cat([obs, action, z], 1))
        q2 = self.q2(torch.cat([obs, action, z], 1))
        v = self.v(torch.cat([obs, fixed_z], 1))
        with torch.no_grad():
            target_v = self.target_v(torch.cat([next_obs, z], 1))

        encoder_opt.zero_grad()
        (KL_WEIGHT * self._kl(mean, variance)).backward(retain_graph=True)
        q1_opt.zero_grad()
        q2_opt.zero_grad()
        y = REWARD_SCALE * reward + (1.0 - terminal) * DISCOUNT * target_v
        ((q1 - y).square().mean() + (q2 - y).square().mean()).backward()
        q1_opt.step()
        q2_opt.step()
        encoder_opt.step()

        new_input = torch.cat([obs, new_action, fixed_z], 1)
        min_q = torch.min(self.q1(new_input), self.q2(new_input))
        v_opt.zero_grad()
        (v - (min_q - log_prob).detach()).square().mean().backward()
        v_opt.step()
        for target, online in zip(self.target_v.parameters(), self.v.parameters(), strict=True):
            target.data.copy_((1.0 - TARGET_RATE) * target.data + TARGET_RATE * online.data)

        policy_opt.zero_grad()
        penalty = 1e-3 * loc.square().mean() + 1e-3 * log_std.square().mean()
        ((log_prob - min_q).mean() + penalty).backward()
        policy_opt.step()

    def posterior(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance ``[B, D]`` of the product of the factors of ``context [B, N, .]``, task by task."""
        factors = self.encoder(context.flatten(0, 1)).view(*context.shape[:2], -1)
        products = []
        for mean, raw in zip(*(part.unbind(0) for part in factors.chunk(2, -1)), strict=True):
            variance = F.softplus(raw).clamp_min(1e-7)
            product = 1.0 / (1.0 / variance).sum(0)
            products.append((product * (mean / variance).sum(0), product))
        means, variances = zip(*products, strict=True)
        return torch.stack(means), torch.stack(variances)

    def _draws(self, mean: Tensor, variance: Tensor) -> list[Tensor]:
        return [Normal(m, v.sqrt()).rsample()[None] for m, v in zip(mean, variance, strict=True)]

    def _kl(self, mean: Tensor, variance: Tensor) -> Tensor:
        prior = Normal(torch.zeros(self.latent_dim), torch.ones(self.latent_dim))
        each = [kl_divergence(Normal(m, v.sqrt()), prior).sum() for m, v in zip(mean, variance, strict=True)]
        return torch.stack(each).sum()

    def _act(self, obs: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        loc, log_std = self.policy(torch.cat([obs, z], 1)).chunk(2, -1)
        log_std = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        normal = Normal(loc, log_std.exp())
        u = normal.rsample()
        action = u.tanh()
        log_prob = normal.log_prob(u) - torch.log(1.0 - action.square() + 1e-6)
        return action, log_prob.sum(1, keepdim=True), loc, log_std

    def _rows(self, tasks: list[int], rows: int) -> list[Tensor]:
        each = [self.buffers[task].draw(rows, self.generator) for task in tasks]
        return [torch.cat(column, 0) for column in zip(*each, strict=True)]

    def _context(self, tasks: list[int]) -> Tensor:
        obs, action, reward, _, _ = self._rows(tasks, self.context_batch)
        return torch.cat([obs, action, reward], -1)
