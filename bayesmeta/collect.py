"""One verb: environment x explorer x inference -> experience, for all tasks of a vector environment at once."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.guards import check_finite
from bayesmeta.types import (
    Belief,
    Context,
    Explorer,
    Inference,
    RecurrentPolicy,
    Spec,
    TaskEnv,
    Transitions,
    concat,
)


@dataclass(frozen=True)
class Rollout:
    """One trial of ``K`` episodes in each of ``B`` tasks.

    ``episodes`` are K records ``[B, T]``; ``latents [B, K, Z]`` is what each episode began conditioned on; ``beliefs``
    are the K + 1 beliefs before the first episode and after each one.
    """

    episodes: tuple[Transitions, ...]
    latents: Float[Tensor, "B K Z"]
    beliefs: tuple[Any, ...]

    @property
    def returns(self) -> Float[Tensor, "B K"]:
        """Undiscounted return of every episode: reported rewards only, no shaping and no bonus."""
        return torch.stack([episode.returns() for episode in self.episodes], 1)

    @property
    def transitions(self) -> Transitions:
        """The whole trial ``[B, K * T]``; episodes end where ``boundary`` is set."""
        return concat(self.episodes)


@torch.no_grad()
def collect(
    env: TaskEnv,
    explorer: Explorer,
    inference: Inference,
    spec: Spec,
    *,
    episodes: int = 1,
    belief: Belief | None = None,
    seed: int | None = None,
) -> Rollout:
    """Run ``episodes`` in every task, updating the belief and redrawing the latent as the explorer says.

    ``belief`` is where the trial starts (default: the prior). ``seed`` restarts the environment's random stream;
    posterior draws and actions use torch's global generator. No gradient is recorded. Raises
    :class:`~bayesmeta.guards.NonFiniteError` on a NaN or infinite observation or reward, before it can enter a belief.
    """
    belief = start = inference.init(env.num_envs) if belief is None else belief
    evidence = _Evidence(explorer, inference, spec, start)
    records, latents, beliefs = [], [], [belief]
    for k in range(episodes):
        if _redraws(explorer, k):
            z = explorer.latent(start if k < explorer.prior_episodes else belief)
        latents.append(z)
        episode = _episode(env, explorer, spec, z, evidence, k, seed if k == 0 else None)
        if explorer.redraw != 0:
            evidence.add(episode)
        before, belief = belief, evidence.belief
        if explorer.bonus is not None:
            bonus = explorer.bonus(before, belief, episode)
            episode = replace(episode, training_reward=episode.training_reward + bonus)
        records.append(episode)
        beliefs.append(belief)
    return Rollout(tuple(records), torch.stack(latents, 1), tuple(beliefs))


def _redraws(explorer: Explorer, k: int) -> bool:
    """Whether episode ``k`` begins with a new latent: every prior episode and the next, then each ``redraw``-th."""
    since = k - explorer.prior_episodes
    return since <= 0 or explorer.redraw == 0 or since % explorer.redraw == 0


class _Evidence:
    """The belief of a running trial; with a window, of its start and of the last ``window`` real data of each task."""

    def __init__(self, explorer: Explorer, inference: Inference, spec: Spec, start: Any) -> None:
        self.explorer, self.inference, self.spec = explorer, inference, spec
        self.start = self.belief = start
        self.seen: Context | None = None

    def add(self, data: Transitions) -> None:
        new, window = data.context(next_obs=self.spec.dynamics_vary), self.explorer.window
        if window is None:
            self.belief = self.inference.update(self.belief, new)
            return
        self.seen = _last(new if self.seen is None else concat([self.seen, new]), window)
        self.belief = self.inference.update(self.start, self.seen)


def _last(data: Context, window: int) -> Context:
    """The last ``window`` real data of each task: tasks whose episodes ended early keep older ones."""
    newer = data.mask.flip(1).cumsum(1).flip(1)  # real data from this one on
    data = replace(data, mask=data.mask & (newer <= window))
    first = int(data.mask.any(0).int().argmax())
    return data.rows(first, data.size)


def _episode(
    env: TaskEnv, explorer: Explorer, spec: Spec, z: Tensor, evidence: _Evidence, k: int, seed: int | None
) -> Transitions:
    """The ``k``-th episode of every task; where the latent is redrawn at every step, ``evidence`` grows with each."""
    first = k < explorer.prior_episodes
    act = _Acting(explorer.exploration if first and explorer.exploration is not None else explorer.policy, env, spec)
    obs, _ = env.reset(seed=seed, options={"explore": first} if spec.reward_free else None)
    check_finite(observation=obs)
    alive = torch.ones(env.num_envs, dtype=torch.bool, device=obs.device)
    steps: list[tuple[Tensor, ...]] = []
    for t in range(spec.horizon):
        action = act(obs, z, explorer.deterministic)
        next_obs, reward, terminated, truncated, info = env.step(action)
        shaped = info.get("training_reward", reward)
        over = terminated | truncated if t + 1 < spec.horizon else torch.ones_like(terminated)
        steps.append((obs, action, reward, shaped, next_obs, terminated & alive, over & alive, alive))
        if not bool(next_obs.sum().isfinite()):  # the policy shall not see it either
            _checked(_stack(steps))
        if explorer.redraw == 0:
            evidence.add(_checked(_stack(steps[-1:])))
            z = explorer.latent(evidence.belief)
        alive = alive & ~over
        obs = next_obs
        if t + 1 < spec.horizon and not bool(alive.any()):
            break
    return _checked(_stack(steps))


class _Acting:
    """A policy in the course of one episode, with what it remembers of it if it does."""

    def __init__(self, policy: Any, env: TaskEnv, spec: Spec) -> None:
        self.policy, self.memory = policy, None
        self.recurrent = isinstance(policy, RecurrentPolicy)
        if self.recurrent:
            self.memory, self.previous = policy.begin(env.num_envs), torch.zeros(env.num_envs, spec.action_dim)

    def __call__(self, obs: Tensor, z: Tensor, deterministic: bool) -> Tensor:
        if self.recurrent:
            law, self.memory = self.policy.act(obs, self.previous.to(obs), z, self.memory)
        else:
            law = self.policy(obs, z)
        self.previous = law.mode if deterministic else law.sample()
        return self.previous


def _checked(record: Transitions) -> Transitions:
    """The record, if its real steps are finite."""
    padding = ~record.mask
    check_finite(
        observation=record.next_obs.masked_fill(padding.unsqueeze(-1), 0.0),
        reward=record.reward.masked_fill(padding, 0.0),
        training_reward=record.training_reward.masked_fill(padding, 0.0),
    )
    return record


def _stack(steps: list[tuple[Tensor, ...]]) -> Transitions:
    return Transitions(*(torch.stack(column, 1) for column in zip(*steps, strict=True)))
