"""PEARL: off-policy meta-RL with a probabilistic task latent (Rakelly et al. 2019), on soft actor-critic.

Generative reading: a task latent ``z ~ p(z)`` and, in place of a likelihood, a factor ``exp(-TD error of the critics
conditioned on z)`` (control as inference). The encoder is the variational posterior ``q(z | context)``, a product of
Gaussian factors, and the training objective of critics and encoder is one ELBO of one Pyro program, per task

    -ELBO = E_q [ sum_i mean_rows (Q_i(s, a, z) - y)^2 ] + kl_weight * KL(q(z | c) || p(z)),

averaged (not summed) over the tasks of a meta-batch, so that its size does not change the weight of the KL. Behaviour
is posterior sampling: z is drawn once per episode and held.

===========  ==========================================================================================
task model   prior + critic factor
inference    product of learned Gaussian factors, with the prior as a factor or without (published)
explorer     reads a posterior sample, redrawn every episode
policy       MLP on [s, z]
trained by   SAC; encoder by critic and KL only
===========  ==========================================================================================

Differences from the published code, all deliberate: learned temperature instead of reward scale and no value network
(Haarnoja et al. 2018b); KL per task mean; critics' gradient is the only one that reaches the encoder, as published, but
by construction (each optimiser is given exactly its gradients) rather than by zeroing; tasks of a meta-batch are drawn
without replacement; all tasks of an iteration are collected as one batch; the posterior that collects is inferred from
the visit's own episodes rather than from a random minibatch of them; contexts are a visit up to the end of a random
episode, so that the posterior is trained on what it will be used on; no penalty on the policy's mean and log standard
deviation.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta.collect import collect
from bayesmeta.guards import check_finite
from bayesmeta.inference.guides import elbo_loss, posterior_guide
from bayesmeta.inference.product import ProductOfGaussians
from bayesmeta.models.networks import Critics, HeldActions, TanhGaussianPolicy
from bayesmeta.models.task_model import FactorModel
from bayesmeta.replay import TaskReplay
from bayesmeta.rl.sac import descend, policy_loss, polyak, soft_target, td_error
from bayesmeta.types import Context, ControlFamily, Explorer, Spec, Transitions


class PEARL:
    """PEARL with SAC, everything batched over tasks. See the module's docstring for the objective.

    Sizes: ``train_tasks`` fixed training tasks; each update draws ``meta_batch`` of them, ``rl_batch`` replay rows and
    at most ``context_batch`` context rows per task. ``contexts`` says which: distinct rows of the task's latest visit
    up to the end of a random episode (``"history"``, what beliefs are made of at meta-test), or exactly
    ``context_batch`` rows, with replacement, of that visit (``"visit"``, as published) or of all data (``"all"``).

    One ``step`` visits ``collect_tasks`` tasks as one vector environment, runs ``prior_episodes`` episodes with z from
    the prior, ``posterior_episodes`` with z from the posterior of the visit so far, and ``extra_episodes`` more whose
    data the encoder does not see; then makes ``updates`` updates. The first step begins with ``initial_episodes`` in
    every training task, by the untrained policy or, with ``initial_actions="held"``, straight ahead in a random
    direction per episode (:class:`~bayesmeta.models.networks.HeldActions`): where reward is sparse something must be
    found before anything can be inferred.

    The learning rate of all optimisers is ``lr / (1 + updates made / lr_half)``, constant with ``lr_half=None``.
    ``kl_weight`` is in units of the squared TD error, per task; it grows linearly to this value over the first
    ``kl_warmup`` updates (0: at once). ``temperature`` is the initial entropy weight in reward units;
    ``learn_temperature`` moves it towards a policy entropy of ``-action_dim`` nats. ``precision="bf16"`` runs the
    networks' products in bfloat16; beliefs, losses and optimisers stay in float32. ``elbo`` is any of Pyro's ELBO
    objects (default: one particle, KL in closed form).
    """

    def __init__(
        self,
        spec: Spec,
        *,
        device: torch.device | str = "cpu",
        latent_dim: int = 6,
        widths: Sequence[int] = (64, 64, 64),
        encoder_widths: Sequence[int] = (128, 128, 128),
        covariance: str = "full",
        rank: int = 2,
        prior_factor: bool = True,
        train_tasks: int = 80,
        meta_batch: int = 16,
        rl_batch: int = 64,
        context_batch: int = 64,
        contexts: Literal["history", "visit", "all"] = "history",
        initial_episodes: int = 10,
        initial_actions: Literal["policy", "held"] = "policy",
        collect_tasks: int = 80,
        prior_episodes: int = 1,
        posterior_episodes: int = 1,
        extra_episodes: int = 0,
        explore_episodes: int = 1,
        updates: int = 200,
        lr: float = 1e-3,
        lr_half: int | None = 5000,
        discount: float = 0.9,
        reward_scale: float = 1.0,
        kl_weight: float = 3e-4,
        kl_warmup: int = 0,
        target_rate: float = 0.02,
        temperature: float = 0.05,
        learn_temperature: bool = True,
        precision: Literal["fp32", "bf16"] = "fp32",
        elbo: ELBO | None = None,
    ) -> None:
        if not spec.is_control:
            raise ValueError(f"PEARL needs a control family, got {spec.name!r}, which has no actions and no horizon")
        if not 1 <= meta_batch <= train_tasks or not 1 <= collect_tasks <= train_tasks:
            raise ValueError(
                f"PEARL: expected meta_batch ({meta_batch}) and collect_tasks ({collect_tasks}) between 1 and "
                f"train_tasks ({train_tasks}); tasks are drawn without replacement"
            )
        if initial_actions == "held" and latent_dim < spec.action_dim:
            raise ValueError(
                f"PEARL: initial_actions='held' turns the latent into an action, so that latent_dim must be at least "
                f"{spec.action_dim}, the actions of {spec.name}; got {latent_dim}"
            )
        self.spec, self.device = spec, torch.device(device)
        self.train_tasks, self.meta_batch, self.rl_batch = train_tasks, meta_batch, rl_batch
        self.context_batch, self.contexts = context_batch, contexts
        self.initial_episodes, self.initial_actions = initial_episodes, initial_actions
        self.collect_tasks, self.updates = collect_tasks, updates
        self.prior_episodes, self.posterior_episodes = prior_episodes, posterior_episodes
        self.extra_episodes, self.explore_episodes = extra_episodes, explore_episodes
        self.discount, self.reward_scale = discount, reward_scale
        self.kl_weight, self.kl_warmup = kl_weight, kl_warmup
        self.target_rate, self.learn_temperature = target_rate, learn_temperature
        self.lr, self.lr_half = lr, lr_half

        bf16 = precision == "bf16"
        sizes = (spec.obs_dim, spec.action_dim, latent_dim, widths)
        self.inference = ProductOfGaussians(
            spec.x_dim,
            spec.y_dim,
            latent_dim,
            widths=encoder_widths,
            prior_factor=prior_factor,
            covariance=covariance,
            rank=rank,
            bf16=bf16,
        ).to(self.device)
        self.policy = TanhGaussianPolicy(*sizes, bf16=bf16).to(self.device)
        self.critics = Critics(*sizes, bf16=bf16).to(self.device)
        self.target = deepcopy(self.critics).requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.tensor(float(temperature), device=self.device).log())

        self._q_parameters = [*self.critics.parameters(), *self.inference.parameters()]
        self._q_optimizer = torch.optim.Adam(self._q_parameters, lr=lr, fused=True)
        self._policy_optimizer = torch.optim.Adam(self.policy.parameters(), lr=lr, fused=True)
        self._temperature_optimizer = torch.optim.Adam([self.log_temperature], lr=lr, fused=True)
        self._elbo = TraceMeanField_ELBO() if elbo is None else elbo
        self._model = FactorModel(self._prior, self._factor, kl_weight)

        self.replay = TaskReplay(train_tasks, spec.obs_dim, spec.action_dim, device)
        self.env_steps, self.updates_made = 0, 0

    # --- behaviour -------------------------------------------------------------------------------------------------

    @property
    def explorer(self) -> Explorer:
        """Meta-test behaviour: the policy's mode, z sampled once per episode."""
        return Explorer(self.policy, prior_episodes=self.explore_episodes, deterministic=True)

    def setup(self, family: ControlFamily, seed: int) -> None:
        """Draw the training tasks. Data are first collected by the first ``step``."""
        self._family = family
        tasks = torch.Generator().manual_seed(seed)
        self._params = family.sample(self.train_tasks, "train", tasks).to(self.device)
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def step(self) -> dict[str, float]:
        """One meta-iteration. Returns means over its updates, and returns of the episodes collected."""
        if self.env_steps == 0:
            everyone = torch.arange(self.train_tasks, device=self.device)
            held = self.initial_actions == "held"
            first = HeldActions(self.spec.action_dim) if held else self.policy
            self._visit(everyone, (self.initial_episodes, 0, 0), first)
        chosen = self._choose(self.collect_tasks)
        collected = self._visit(
            chosen, (self.prior_episodes, self.posterior_episodes, self.extra_episodes), self.policy
        )
        totals: dict[str, Tensor] = {}
        for _ in range(self.updates):
            self._set_schedules()
            for key, value in self.update(*self.draw()).items():
                totals[key] = totals.get(key, 0.0) + value
            self.updates_made += 1
        check_finite(**dict(self._named_parameters()))
        means = {key: float(value) / self.updates for key, value in totals.items()}
        return {"env_steps": float(self.env_steps), **collected, **means}

    # --- learning --------------------------------------------------------------------------------------------------

    def draw(self) -> tuple[Transitions, Context]:
        """What an update learns from: replay rows ``[meta_batch, rl_batch]`` of random tasks, and their contexts.

        Raises ValueError before the first ``step`` has collected data.
        """
        tasks = self._choose(self.meta_batch)
        return self.replay.sample(tasks, self.rl_batch, self._generator), self._context(tasks)

    def update(self, batch: Transitions, context: Context) -> dict[str, Tensor]:
        """One gradient step of critics and encoder, then of the policy, then of the temperature."""
        tasks = len(batch.reward)
        posterior = self.inference.update(self.inference.init(tasks), context).posterior
        loss = self._objective(posterior, batch)
        descend(self._q_optimizer, loss / tasks, self._q_parameters)

        z = posterior.sample()
        temperature = self.log_temperature.exp().detach()
        actor, log_prob = policy_loss(self.policy, self.critics, batch.obs, z, temperature=temperature)
        descend(self._policy_optimizer, actor, self.policy.parameters())
        if self.learn_temperature:
            surplus = log_prob - self.spec.action_dim  # target entropy: -action_dim nats
            descend(self._temperature_optimizer, -self.log_temperature * surplus, [self.log_temperature])
        polyak(self.target, self.critics, self.target_rate)
        check_finite(elbo=loss, policy_loss=actor)
        return {
            "critic_loss": loss.detach() / tasks,
            "policy_loss": actor.detach(),
            "entropy": -log_prob,
            "temperature": temperature,
            "posterior_sd": posterior.stddev.detach().mean(),
        }

    def _objective(self, posterior: Distribution, batch: Transitions) -> Float[Tensor, ""]:
        """Minus the ELBO, summed over tasks, of the program ``prior, factor`` with this posterior as its guide."""

        def guide(*_: Any) -> Tensor:
            return posterior_guide(posterior, self._model.kl_weight)

        return elbo_loss(self._elbo, self._model, guide, len(batch.reward), batch)

    def _set_schedules(self) -> None:
        lr = self.lr if self.lr_half is None else self.lr / (1.0 + self.updates_made / self.lr_half)
        for optimizer in (self._q_optimizer, self._policy_optimizer, self._temperature_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = lr
        self._model.kl_weight = self.kl_weight * min(1.0, (self.updates_made + 1) / max(1, self.kl_warmup))

    def _prior(self, batch: int) -> Distribution:
        return self.inference.init(batch).posterior

    def _factor(self, z: Float[Tensor, "B D"], batch: Transitions) -> Float[Tensor, "B"]:
        """The log factor of each task: minus the critics' TD error. Its gradient reaches the encoder through z."""
        y = soft_target(
            self.policy,
            self.target,
            batch,
            z,
            temperature=self.log_temperature.exp(),
            discount=self.discount,
            reward_scale=self.reward_scale,
        )
        error = td_error(self.critics, batch, z, y)
        check_finite(td_error=error)
        return -error

    # --- data ------------------------------------------------------------------------------------------------------

    def _visit(self, tasks: Int[Tensor, "B"], episodes: tuple[int, int, int], policy: nn.Module) -> dict[str, float]:
        """Collect ``(prior, posterior, extra)`` episodes in each of ``tasks`` and file them."""
        prior, posterior, extra = episodes
        seed = int(torch.randint(2**31, (), generator=self._generator, device=self.device))
        env = self._family.env(self._params[tasks], device=self.device)
        explorer = Explorer(policy, prior_episodes=prior)
        rollout = collect(env, explorer, self.inference, self.spec, episodes=prior + posterior + extra, seed=seed)
        env.close()
        self.replay.begin_visit(tasks)
        for k, episode in enumerate(rollout.episodes):
            self.replay.add(tasks, episode, context=k < prior + posterior)
            self.env_steps += int(episode.mask.sum())
        returns = rollout.returns.mean(0).tolist()
        return {f"collect/return_{k}": value for k, value in enumerate(returns)}

    def _context(self, tasks: Int[Tensor, "B"]) -> Context:
        replay = self.replay
        sample = {"history": replay.sample_history, "visit": replay.sample_recent, "all": replay.sample}[self.contexts]
        rows = sample(tasks, self.context_batch, self._generator)
        return rows.context(next_obs=self.spec.dynamics_vary)

    def _choose(self, count: int) -> Int[Tensor, "count"]:
        """Distinct training tasks."""
        return torch.randperm(self.train_tasks, generator=self._generator, device=self.device)[:count]

    # --- state -----------------------------------------------------------------------------------------------------

    def _named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        for name in ("inference", "policy", "critics"):
            for key, value in getattr(self, name).named_parameters():
                yield f"{name}.{key}", value
        yield "log_temperature", self.log_temperature

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers, replay, training tasks and the sampler's random state."""
        parts = ("inference", "policy", "critics", "target", "replay")
        optimizers = ("_q_optimizer", "_policy_optimizer", "_temperature_optimizer")
        return {
            **{name: getattr(self, name).state_dict() for name in (*parts, *optimizers)},
            "log_temperature": self.log_temperature.detach().clone(),
            "params": self._params,
            "generator": self._generator.get_state(),
            "env_steps": self.env_steps,
            "updates_made": self.updates_made,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``. Call ``setup`` first; its tasks are replaced by the saved ones."""
        for name in ("inference", "policy", "critics", "target", "replay"):
            getattr(self, name).load_state_dict(state[name])
        for name in ("_q_optimizer", "_policy_optimizer", "_temperature_optimizer"):
            getattr(self, name).load_state_dict(state[name])
        with torch.no_grad():
            self.log_temperature.copy_(state["log_temperature"])
        self._params = state["params"].to(self.device)
        self._generator.set_state(state["generator"].cpu())
        self.env_steps, self.updates_made = int(state["env_steps"]), int(state["updates_made"])
