"""An environment of your own as a family of tasks, and PEARL trained to adapt to it. Half a minute on one core."""

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box

from bayesmeta.algorithms.pearl import PEARL
from bayesmeta.evaluate import evaluate
from bayesmeta.tasks.gym_family import GymFamily
from bayesmeta.train import train


class Cart(gymnasium.Env):
    """A cart on a rail that is paid for being near a target it cannot see."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)  # position and velocity
    action_space = Box(-2.0, 2.0, (1,), np.float32)  # force
    target = 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.velocity = self.np_random.uniform(-0.5, 0.5), 0.0
        return self._observation(), {}

    def step(self, action):
        self.velocity = 0.8 * self.velocity + 0.1 * float(action[0])
        self.position += 0.2 * self.velocity
        return self._observation(), -abs(self.position - self.target), False, False, {}

    def _observation(self):
        return np.array([self.position, self.velocity], np.float32)


def set_target(cart, task):
    cart.unwrapped.target = float(task[0])


def sample_targets(n, split, generator):
    u = 2 * torch.rand(n, 1, generator=generator) - 1
    return u.sign() * (1 + 0.5 * u.abs()) if split == "ood" else u  # ood: beyond both ends of the range trained on


def cart_family(horizon: int = 20) -> GymFamily:
    return GymFamily(
        name="cart-v1",
        make=Cart,
        set_task=set_target,
        sample=sample_targets,
        param_names=("target",),
        horizon=horizon,
    )


family = cart_family()
torch.manual_seed(0)
pearl = PEARL(
    family.spec,
    latent_dim=4,
    covariance="full",
    train_tasks=40,
    collect_tasks=40,
    initial_episodes=5,
    discount=0.9,
    kl_weight=3e-4,
    temperature=0.05,
    target_rate=0.02,
)
train(pearl, family, iterations=3, progress="lines")

targets = family.sample(50, "test", torch.Generator().manual_seed(1))
rollout = evaluate(pearl, family, targets, episodes=4)
first, *_, last = rollout.returns.mean(0).tolist()
print(f"mean return on 50 unseen targets: {first:.1f} in the first episode, {last:.1f} in the fourth")
assert last > 0.6 * first, "no adaptation: returns are negative, and the last should be much nearer to 0"
