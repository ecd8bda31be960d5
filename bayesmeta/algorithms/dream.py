r"""DREAM: explore to infer a bottlenecked encoding of the task, and act on it (Liu, Raghunathan, Liang and Finn 2021).

Generative reading: a task ``mu`` is known by a code ``z ~ N(0, I)`` of what execution needs of it. In training the code
is inferred by one who is told the task, ``q(z | mu)``; the objective is one ELBO of one Pyro program, with the
execution policy's TD error as its factor,

    E_q [ - TD error(z) ] - kl_weight KL(q(z | mu) || N(0, I)),

whose KL term is an upper bound of the information ``I(z; mu)`` that the code carries: what execution does not need is
not worth its nats. At meta-test the code is inferred from the exploration trajectory, ``q(z | tau_{:t})``, a recurrent
belief after every transition trained by ``- E_q(z | mu) log q(z | tau_{:t})``. A policy of its own explores, paid

    r_t = E_q(z | mu) [ log q(z | tau_{:t+1}) - log q(z | tau_{:t}) ] / KL(q(z | mu) || N(0, I)) - cost

for what its trajectory tells of the code, as a share of what the code holds (KL: its mean over the tasks of a batch),
in closed form, with the latest of both (equations 3 to 5). It sees observations and its own actions, neither reward nor
instruction nor code.

===========  ==========================================================================================
task model   N(0, I) as a bottleneck + execution factor
inference    told the task in training, recurrence over the trajectory at test, diagonal Gaussian
explorer     a policy of its own, paid the gain of log q(z); reads the mean once per trial
policy       recurrent, z beside its memory
trained by   double Q-learning and one ELBO; double Q-learning on the bonus; -log q(z given trajectory)
===========  ==========================================================================================

Gradients: of the TD error into values and, through z, into the code of the told tasks and the belief of the others; of
``-log q(z | tau)`` into the belief alone, the code held constant; of the bonus into nothing. Targets are constants.

Differences from the published code, all deliberate. ``bottleneck="kl"`` learns the variances of code and belief, with a
KL to a fixed prior, and pays shares of the code, whose nats fall by a factor of ten as it is compressed; ``"hinge"`` is
the published form, a fixed standard deviation of 0.1, the penalty ``max(|mean|^2, hinge)`` and squared distances for
nats. Half of the tasks of a batch act and learn on the code and half on the belief, where published trials alternate;
the target network reads the same ``z`` as the online one (a copy of code and belief that is never switched, in the
code). The explorer's gradients and checkpoints hold nothing of code and belief. Advantages are centred over actions
only; the belief remembers by a GRU; an episode of exploration cannot be ended by an instruction that the explorer is
not shown. The time limit ends an episode for good, as published.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float, Int
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from bayesmeta.collect import collect
from bayesmeta.guards import check_finite
from bayesmeta.inference.guides import elbo_loss, posterior_guide
from bayesmeta.inference.privileged import Told
from bayesmeta.inference.recurrent import RecurrentGaussian
from bayesmeta.models.recurrent_q import EpsilonGreedy, RecurrentQ
from bayesmeta.models.task_model import FactorModel
from bayesmeta.rl.dqn import double_q_target, previous_actions, td_error
from bayesmeta.rl.q_learner import QLearner, Schedule
from bayesmeta.trial_replay import TrialReplay, Trials
from bayesmeta.types import Context, ControlFamily, Explorer, Inference, RecurrentPolicy, Spec, Transitions

_FIXED = 0.1  # published standard deviation of code and belief
_AT_ONCE = 8  # batches that are drawn and labelled together: no more fit a core's cache
_BOUNDS = (0.05, 1.0), (0.05, 2.0)  # of those that are learned


class DREAM:
    """DREAM on a family of discrete control with episodes free of reward. See the module's docstring.

    ``kl_weight`` is the price of a nat of the code, in units of the squared TD error per step. ``cost`` is the price of
    a step of exploration, a share of the code (``"hinge"``: a squared distance). Both grow linearly to these values
    over the first ``warmup`` updates of execution, before which neither code nor exploration is worth its price. From
    update ``final_after`` of execution on they are ``final_kl_weight`` and ``final_cost`` instead, and the rate of both
    policies' updates ``final_lr``, where these are given. A code learned at a low price keeps some nats that execution
    does not need, and a high price from the start removes the code before execution has learned what it needs; a high
    price of a step, before exploration tells anything, ends it at once; and what a low one decides is less than a high
    rate leaves to chance.
    ``weight_decay`` of execution and belief, not of the codes, per unit of the rate of updates: networks that do not
    learn the training tasks by heart infer and execute tasks that were not in training.
    ``execution_episodes`` follow each exploration, with one belief.

    Warns once if exploration ends as soon as its random actions let it, without having gained any information.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        device: torch.device | str = "cpu",
        latent_dim: int = 64,
        bottleneck: Literal["kl", "hinge"] = "kl",
        kl_weight: float = 1e-4,
        warmup: int = 0,
        hinge: float = 10.0,
        cost: float = 0.02,
        final_kl_weight: float | None = None,
        final_cost: float | None = None,
        final_lr: float | None = None,
        final_after: int = 0,
        weight_decay: float = 0.0,
        execution_episodes: int = 1,
        schedule: Schedule | None = None,
    ) -> None:
        if not spec.actions or not spec.reward_free:
            raise ValueError(
                f"DREAM needs a control family with discrete actions and episodes free of reward, got {spec.name!r}"
            )
        self.spec, self.device, self.schedule = spec, torch.device(device), schedule or Schedule()
        self.latent_dim, self.bottleneck, self.hinge = latent_dim, bottleneck, hinge
        self.execution_episodes = execution_episodes
        (least, code), (_, belief) = [(_FIXED, _FIXED)] * 2 if bottleneck == "hinge" else _BOUNDS
        self.unit = 2 * _FIXED**2 if bottleneck == "hinge" else 1.0  # what a nat counts in the belief's loss
        self.told = Told(spec, latent_dim, least=least, most=code).to(self.device)
        self.inference = RecurrentGaussian(spec, latent_dim, least=least, most=belief).to(self.device)
        self.execute = QLearner(
            RecurrentQ(spec, latent_dim),
            self.schedule,
            self.device,
            (self.told, self.inference),
            weight_decay=weight_decay,
            decayed=(self.inference,),
        )
        self.explore = QLearner(RecurrentQ(spec, previous=True), self.schedule, self.device)
        self.kl_weight, self.cost, self.warmup = kl_weight, cost, warmup
        self.final_kl_weight, self.final_cost, self.final_lr = final_kl_weight, final_cost, final_lr
        self.final_after = final_after
        self._model = FactorModel(self._prior, self._factor, kl_weight)
        self._elbo = TraceMeanField_ELBO()
        self.replay = TrialReplay(spec, self.schedule.capacity, device)
        self._warned, self._given_up = False, 0

    # --- behaviour -------------------------------------------------------------------------------------------------

    @property
    def explorer(self) -> Explorer:
        """Meta-test behaviour: an episode of exploration, then the best actions for the belief's mean."""
        return self._explorer(EpsilonGreedy(self.execute.q), EpsilonGreedy(self.explore.q))

    def informed(self, params: Float[Tensor, "B M"]) -> Explorer:
        """As :attr:`explorer`, but execution is told the tasks: the mean of their codes in place of the belief's."""
        with torch.no_grad():
            code = self.told(params).mean
        everyone = torch.ones(len(params), 1, dtype=torch.bool, device=self.device)
        execute = _Informed(EpsilonGreedy(self.execute.q), code, everyone)
        return self._explorer(execute, EpsilonGreedy(self.explore.q))

    def setup(self, family: ControlFamily, seed: int) -> None:
        """Where tasks will be drawn from. Nothing is collected yet."""
        self._family = family
        self._tasks = torch.Generator().manual_seed(seed)
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def step(self) -> dict[str, float]:
        """One meta-iteration: trials, and the updates that are due. Returns means over both."""
        total: dict[str, list[float]] = {}
        for _ in range(self.schedule.trials_per_iteration // self.schedule.trials):
            found = self._collect()
            found |= self._updates(self.execute, self.execution_loss, self.schedule.execute_after)
            found |= self._updates(self.explore, self.exploration_loss, self.schedule.explore_after)
            for name, value in found.items():
                total.setdefault(name, []).append(value)
        check_finite(**dict(self._named_parameters()))
        means = {name: sum(values) / len(values) for name, values in total.items()}
        self._look_for_collapse(means)
        return {
            "env_steps": float(self.execute.steps + self.explore.steps),
            "trials": float(self.replay.added),
            **means,
        }

    # --- learning --------------------------------------------------------------------------------------------------

    def execution_loss(self, batch: Trials) -> dict[str, Tensor]:
        """``loss``: minus the ELBO of execution, plus ``-log q(z | tau)`` at every prefix, means over tasks."""
        tasks = len(batch.params)
        code = self.told(batch.params)
        beliefs, task, _ = _beliefs(self.inference, batch.explore)
        decoder = _cross_entropy(_constant(code), beliefs, task).mean() * self.unit
        inferred = beliefs.mean[(1 + batch.explore.mask.sum(1)).cumsum(0) - 1]  # after the whole exploration
        execution = self._bottlenecked(code, (batch.execute, inferred))
        nats = kl_divergence(code, self._prior(tasks)).mean()
        return {"loss": execution + decoder, "execution_loss": execution, "decoder_loss": decoder, "code_nats": nats}

    def exploration_loss(self, batch: Trials) -> dict[str, Tensor]:
        """The TD error of exploration, a mean over steps, of trials whose rewards are the bonus (``relabelled``)."""
        return {"loss": self._td(self.explore, batch.explore, batch.explore.reward, None).mean()}

    def relabelled(self, batch: Trials) -> Trials:
        """The trials with the bonus as the reward of their exploration."""
        return replace(batch, explore=replace(batch.explore, reward=self.bonus(batch)))

    @torch.no_grad()
    def bonus(self, batch: Trials) -> Float[Tensor, "B T"]:
        """``r_t``: what each step of exploration told of the code, less its cost; 0 where there was none."""
        code, mask = self.told(batch.params), batch.explore.mask
        beliefs, task, number = _beliefs(self.inference, batch.explore)
        nats = _cross_entropy(code, beliefs, task) * self.nat(code)
        table = nats.new_zeros(len(mask), 1 + mask.shape[1]).index_put_((task, number), nats)
        return (table[:, :-1] - table[:, 1:] - self._cost).masked_fill(~mask, 0.0)

    def nat(self, code: Distribution) -> Tensor | float:
        """What exploration is paid for a nat of these tasks' codes; for one of a code of less than a nat, 1."""
        if self.bottleneck == "hinge":
            return self.unit
        return 1.0 / kl_divergence(code, self._prior(len(code.mean))).mean().clamp_min(1.0)

    @property
    def _cost(self) -> float:
        """The price of a step of exploration by now."""
        return self._by_now(self.cost, self.final_cost)

    def _by_now(self, price: float, final: float | None) -> float:
        """A price that grows, or its final value if there is one and it is time."""
        if final is not None and self.execute.made >= self.final_after:
            return final
        return price * min(1.0, (self.execute.made + 1) / max(1, self.warmup))

    def _bottlenecked(self, code: Distribution, data: tuple[Transitions, Tensor]) -> Float[Tensor, ""]:
        """What execution and bottleneck cost: minus the ELBO, or the published penalty, a mean over tasks."""
        tasks = len(code.mean)
        if self.bottleneck == "hinge":
            penalty = code.mean.square().sum(-1).clamp_min(self.hinge)
            return (penalty - self._factor(code.rsample(), data)).mean()

        def guide(*_: Any) -> Tensor:
            return posterior_guide(code, self._model.kl_weight)

        return elbo_loss(self._elbo, self._model, guide, tasks, data) / tasks

    def _prior(self, batch: int) -> Distribution:
        zeros = torch.zeros(batch, self.latent_dim, device=self.device)
        return dist.Normal(zeros, torch.ones_like(zeros), validate_args=False).to_event(1)

    def _factor(self, z: Float[Tensor, "B D"], data: tuple[Transitions, Tensor]) -> Float[Tensor, "B"]:
        """Minus the TD error of each task: of every second one with the belief's mean in place of the code."""
        episode, inferred = data
        return -self._td(self.execute, episode, episode.reward, torch.where(_every_second(z), inferred, z))

    def _td(
        self, learner: QLearner[RecurrentQ], episode: Transitions, reward: Tensor, z: Tensor | None
    ) -> Float[Tensor, "B"]:
        previous = previous_actions(episode.action)
        obs = torch.cat([episode.obs, episode.next_obs[:, -1:]], 1)
        wanted = _prefixes(episode.mask)
        online = learner.q(obs, previous, z, wanted)
        with torch.no_grad():
            target = learner.target(obs, previous, z, wanted)
        y = double_q_target(online, target, reward, episode.boundary, self.schedule.discount)
        return td_error(online[:, :-1], episode.action, y, episode.mask)

    def _updates(
        self, learner: QLearner[RecurrentQ], loss: Callable[[Trials], dict[str, Tensor]], after: int
    ) -> dict[str, float]:
        """The updates that a learner's environment steps since ``after`` trials have made due. Returns means."""
        due = learner.due(begun=self.replay.added >= after)
        self._model.kl_weight = self._by_now(self.kl_weight, self.final_kl_weight)
        if self.final_lr is not None and self.execute.made >= self.final_after:
            learner.slow_to(self.final_lr)
        total: dict[str, Tensor] = {}
        for batch in self._batches(due, relabelled=learner is self.explore):
            found = loss(batch)
            learner.descend(found["loss"])
            for name, value in found.items():
                total[name] = total.get(name, 0.0) + value.detach()
        prefix = "execute" if learner is self.execute else "explore"
        return {f"{prefix}/{name}": float(value) / due for name, value in total.items()}

    def _batches(self, count: int, *, relabelled: bool) -> Iterator[Trials]:
        """``count`` batches from replay. What labels them rests while exploration learns: it does so many at a time."""
        size = self.schedule.batch
        for first in range(0, count, _AT_ONCE):
            trials = self.replay.sample(size * min(_AT_ONCE, count - first), self._generator)
            yield from (self.relabelled(trials) if relabelled else trials).split(size)

    # --- data ------------------------------------------------------------------------------------------------------

    def _collect(self) -> dict[str, float]:
        """Trials of fresh tasks, every second one executed by the belief and the others by the code."""
        s = self.schedule
        params = self._family.sample(s.trials, "train", self._tasks).to(self.device)
        seed = int(torch.randint(2**31, (), generator=self._tasks))
        rates = [learner.epsilon for learner in (self.execute, self.explore)]
        with torch.no_grad():
            code = self.told(params).sample()
        explorer = self._explorer(
            _Informed(EpsilonGreedy(self.execute.q, rates[0]), code, ~_every_second(code)),
            EpsilonGreedy(self.explore.q, rates[1]),
        )
        env = self._family.env(params, device=self.device)
        episodes = 1 + self.execution_episodes
        rollout = collect(env, explorer, self.inference, self.spec, episodes=episodes, seed=seed)
        env.close()
        explored, *executed = rollout.episodes
        for episode in executed:
            self.replay.add(Trials(params, explored, episode))
            self.execute.steps += int(episode.mask.sum())
        self.explore.steps += int(explored.mask.sum())
        bonus = self.bonus(Trials(params, explored, executed[0])).sum(1).mean()
        return {
            "collect/return": float(rollout.returns[:, 1:].mean()),
            "collect/exploration_steps": float(explored.mask.sum(1).float().mean()),
            "collect/bonus": float(bonus),
            "epsilon": rates[1],
        }

    def _explorer(self, execute: Any, explore: Any) -> Explorer:
        return Explorer(execute, reads="mean", redraw=self.execution_episodes, exploration=explore)

    def _look_for_collapse(self, means: dict[str, float]) -> None:
        """The known failure: nothing is gained, so that the cheapest exploration is none, for three iterations now."""
        settled = means["epsilon"] <= 0.9 and self.replay.added > self.schedule.explore_after
        going_on = means["epsilon"] * (1.0 - 1.0 / self.spec.actions)  # of a step, where the best action is to end
        at_once = (1.0 - going_on**self.spec.horizon) / (1.0 - going_on)
        steps = means["collect/exploration_steps"]
        gained = means["collect/bonus"] + self._cost * steps
        given_up = settled and steps <= 1.15 * at_once and gained <= 0.02
        self._given_up = self._given_up + 1 if given_up else 0
        if self._warned or self._given_up < 3:
            return
        self._warned = True
        warnings.warn(
            f"DREAM: exploration ends after {steps:.1f} steps, as early as random actions let it, and tells "
            f"{gained:.2g} of the code, whose information is {means.get('execute/code_nats', math.nan):.2g} nats. If "
            f"that is about 0 the bottleneck removed the task: lower kl_weight (hinge: raise it). If not, exploration "
            f"gave up before the belief had learned: raise schedule.explore_after, epsilon_steps and warmup, or lower "
            f"cost",
            stacklevel=2,
        )

    # --- state -----------------------------------------------------------------------------------------------------

    def _named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        parts = {"told": self.told, "inference": self.inference, "execute": self.execute.q, "explore": self.explore.q}
        for name, module in parts.items():
            for key, value in module.named_parameters():
                yield f"{name}.{key}", value

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers, replay and the random state of tasks and of samples."""
        return {
            **{name: getattr(self, name).state_dict() for name in _PARTS},
            "tasks": self._tasks.get_state(),
            "generator": self._generator.get_state(),
            "warned": self._warned,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``, after ``setup``."""
        for name in _PARTS:
            getattr(self, name).load_state_dict(state[name])
        self._tasks.set_state(state["tasks"].cpu())
        self._generator.set_state(state["generator"].cpu())
        self._warned = bool(state["warned"])


_PARTS = ("told", "inference", "execute", "explore", "replay")


@dataclass(frozen=True)
class _Informed:
    """A recurrent policy that follows ``code`` in the tasks ``told``, and ``z`` in the others."""

    policy: RecurrentPolicy
    code: Float[Tensor, "B D"]
    told: Bool[Tensor, "B 1"]

    def begin(self, batch: int) -> Any:
        return self.policy.begin(batch)

    def act(
        self, obs: Float[Tensor, "B S"], previous: Float[Tensor, "B A"], z: Float[Tensor, "B D"], memory: Any
    ) -> tuple[Distribution, Any]:
        return self.policy.act(obs, previous, torch.where(self.told, self.code, z), memory)


def _every_second(z: Float[Tensor, "B D"]) -> Bool[Tensor, "B 1"]:
    return (torch.arange(len(z), device=z.device) % 2 == 1).unsqueeze(1)


def _prefixes(mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T1"]:
    """Which of the ``T + 1`` prefixes there are: the empty one, and one after each real step."""
    return torch.cat([torch.ones_like(mask[:, :1]), mask], 1)


@runtime_checkable
class _Scans(Inference, Protocol):
    """A procedure that gets the beliefs at all prefixes together."""

    def scan(self, belief: Any, data: Context) -> Any: ...


def _beliefs(inference: _Scans, explore: Transitions) -> tuple[Distribution, Int[Tensor, "P"], Int[Tensor, "P"]]:
    """The beliefs before exploration and after each of its steps, task by task: which task, after how many."""
    begun, data = inference.init(len(explore.mask)), explore.context(next_obs=True)
    if isinstance(inference, RecurrentGaussian):
        return inference.prefixes(begun, data)
    posterior = inference.scan(begun, data).posterior  # another procedure, with the padding it repeats
    task, number = _prefixes(explore.mask).nonzero().T
    rows = number * len(explore.mask) + task
    return dist.Normal(posterior.mean[rows], posterior.variance[rows].sqrt(), validate_args=False), task, number


def _cross_entropy(code: Distribution, beliefs: Distribution, task: Int[Tensor, "P"]) -> Float[Tensor, "P"]:
    """``- E_q(z | mu) log q(z | tau_{:t})`` of beliefs about the tasks ``task``, in nats."""
    mean, variance = code.mean[task], code.variance[task]
    terms = ((mean - beliefs.mean).square() + variance) / beliefs.variance + beliefs.variance.log()
    return 0.5 * (terms + math.log(2 * math.pi)).sum(-1)


def _constant(law: Distribution) -> Distribution:
    return dist.Normal(law.mean.detach(), law.stddev.detach(), validate_args=False).to_event(1)
