"""E-RL^2: one recurrent learner through exploration and execution, paid for execution alone (Stadie et al. 2018).

The end-to-end yardstick of DREAM, with the same worlds, sizes and Q-learning: a trial of one episode of exploration and
one or more of execution is a single long episode of a policy whose belief is what it remembers of it (RL^2, Duan et al.
2016). Exploration is learned only through what it is worth later, by the discounted return of execution.

===========  ==========================================================================================
task model   -
inference    recurrence over all transitions of the trial, rewards included, deterministic
explorer     the same policy; reads the code, anew at every step
policy       feedforward on [s, code]
trained by   double Q-learning through the whole trial
===========  ==========================================================================================

Differences from the authors' code of DREAM, where this is a baseline: exploration pays nothing and shows no reward, as
for DREAM; the code is a GRU's state after the last transition and the observation is read beside it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesmeta.collect import collect
from bayesmeta.guards import check_finite
from bayesmeta.inference.recurrent import RecurrentCode
from bayesmeta.models.code_q import CodePolicy, CodeQ
from bayesmeta.rl.dqn import double_q_target, td_error
from bayesmeta.rl.q_learner import QLearner, Schedule
from bayesmeta.trial_replay import TrialReplay, Trials
from bayesmeta.types import ControlFamily, Explorer, Spec, Transitions, concat, map_tensors


class TrialValues(nn.Module):
    """A recurrent belief and the values that read it, as one function of a trial."""

    def __init__(self, spec: Spec, memory: int) -> None:
        super().__init__()
        self.inference = RecurrentCode(spec, memory=memory)
        self.q = CodeQ(spec, memory)

    def forward(self, trial: Transitions) -> Float[Tensor, "B T1 A"]:
        """The values before each step of trials without padding but at their ends, and after the last."""
        tasks = len(trial.mask)
        codes = self.inference.scan(self.inference.init(tasks), trial.context(next_obs=True)).z
        obs = torch.cat([trial.obs, trial.next_obs[:, -1:]], 1)
        return self.q(obs, codes.unflatten(0, (-1, tasks)).transpose(0, 1))


class ERL2:
    """E-RL^2 on a family of discrete control with episodes free of reward. See the module's docstring.

    ``execution_episodes`` follow each exploration. ``schedule.explore_after`` is not used: there is one learner.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        device: torch.device | str = "cpu",
        memory: int = 64,
        schedule: Schedule | None = None,
    ) -> None:
        if not spec.actions or not spec.reward_free:
            raise ValueError(
                f"ERL2 needs a control family with discrete actions and episodes free of reward, got {spec.name!r}"
            )
        self.spec, self.device, self.schedule = spec, torch.device(device), schedule or Schedule()
        self.learner = QLearner(TrialValues(spec, memory), self.schedule, self.device)
        self.replay = TrialReplay(spec, self.schedule.capacity, device)

    @property
    def inference(self) -> RecurrentCode:
        """What is remembered of a trial."""
        return self.learner.q.inference

    @property
    def explorer(self) -> Explorer:
        """Meta-test behaviour: the best action for what is remembered, in exploration and after it."""
        return Explorer(CodePolicy(self.learner.q.q), reads="mean", redraw=0)

    def setup(self, family: ControlFamily, seed: int) -> None:
        """Where tasks will be drawn from. Nothing is collected yet."""
        self._family = family
        self._tasks = torch.Generator().manual_seed(seed)
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def step(self) -> dict[str, float]:
        """One meta-iteration: trials, and the updates that are due. Returns means over both."""
        s = self.schedule
        total: dict[str, float] = {}
        rounds = s.trials_per_iteration // s.trials
        for _ in range(rounds):
            found = self._collect()
            due = self.learner.due(begun=self.replay.added >= s.execute_after)
            for _ in range(due):
                loss = self.loss(self.replay.sample(s.batch, self._generator))
                self.learner.descend(loss)
                found["loss"] = found.get("loss", 0.0) + float(loss.detach()) / due
            for name, value in found.items():
                total[name] = total.get(name, 0.0) + value / rounds
        check_finite(**dict(self._named_parameters()))
        return {"env_steps": float(self.learner.steps), "trials": float(self.replay.added), **total}

    def loss(self, batch: Trials) -> Float[Tensor, ""]:
        """The TD error, a mean over all steps of both episodes; the trial ends where execution does."""
        trial = joined(batch.explore, batch.execute)
        online = self.learner.q(trial)
        with torch.no_grad():
            target = self.learner.target(trial)
        last = torch.arange(trial.mask.shape[1], device=self.device) == trial.mask.sum(1, keepdim=True) - 1
        y = double_q_target(online, target, trial.reward, last, self.schedule.discount)
        return td_error(online[:, :-1], trial.action, y, trial.mask).mean()

    def _collect(self) -> dict[str, float]:
        s = self.schedule
        params = self._family.sample(s.trials, "train", self._tasks).to(self.device)
        seed = int(torch.randint(2**31, (), generator=self._tasks))
        epsilon = self.learner.epsilon
        explorer = Explorer(CodePolicy(self.learner.q.q, epsilon), reads="mean", redraw=0)
        env = self._family.env(params, device=self.device)
        rollout = collect(env, explorer, self.inference, self.spec, episodes=2, seed=seed)
        env.close()
        explored, executed = rollout.episodes
        self.replay.add(Trials(params, explored, executed))
        self.learner.steps += int(explored.mask.sum() + executed.mask.sum())
        return {
            "collect/return": float(rollout.returns[:, 1].mean()),
            "collect/exploration_steps": float(explored.mask.sum(1).float().mean()),
            "epsilon": epsilon,
        }

    def _named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.learner.q.named_parameters()

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimiser, replay and the random state of tasks and of samples."""
        return {
            "learner": self.learner.state_dict(),
            "replay": self.replay.state_dict(),
            "tasks": self._tasks.get_state(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``, after ``setup``."""
        self.learner.load_state_dict(state["learner"])
        self.replay.load_state_dict(state["replay"])
        self._tasks.set_state(state["tasks"].cpu())
        self._generator.set_state(state["generator"].cpu())


def joined(explore: Transitions, execute: Transitions) -> Transitions:
    """A trial as one episode, its real steps first: what follows exploration is the start of execution.

    ``next_obs`` of the last column is what was seen last, for every trial.
    """
    both = concat([explore, execute])
    order = (~both.mask).int().argsort(dim=1, stable=True)[:, : int(both.mask.sum(1).max())]

    def sorted_rows(value: Tensor) -> Tensor:
        return value.gather(1, order.view(*order.shape, *[1] * (value.ndim - 2)).expand(-1, -1, *value.shape[2:]))

    return map_tensors(both, sorted_rows)
