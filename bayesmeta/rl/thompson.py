"""Exact Thompson sampling in a finite deterministic world: what exploring by posterior draws is worth at its best."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from bayesmeta.rl.finite import Plan, plan
from bayesmeta.rl.rules import Rules


@dataclass(frozen=True)
class ThompsonTrial:
    """``returns [B]`` of the episodes with an instruction; ``explored [B, P]`` log weights of the problems before."""

    returns: Float[Tensor, "B"]
    explored: Float64[Tensor, "B P"]


class Thompson:
    """Trials of an agent that knows the world and its problems ``[P, M]``, has an exact posterior and plans exactly.

    A trial is an episode of exploration, unless there is none, and one with an instruction. In both the agent draws a
    problem from its posterior and acts optimally for it; actions that are equally good are drawn too.

    - What it observes is the next state, in either episode, and in the second the instruction, which says something
      where it depends on the problem. Rewards are not observed, but in a world whose reward tells more than the state
      does: then those of the second episode are. The first has none.
    - In exploration it follows an instruction of the problem that it drew, drawn with it. It keeps it to the end, by a
      new problem too if that one has it. When that instruction would have ended the episode, so does the agent.
    - ``resample="contradicted"``: it draws anew as soon as what it sees cannot happen in the problem that it drew;
      ``"episode"``: it keeps the problem for the whole episode, however wrong. In a state which that problem does not
      have, all actions are alike to it.

    It is what an agent that explores by posterior draws, such as PEARL, would get if it had learned everything else,
    and no bound for others: a posterior draw never says that a map is worth reading. Published as PEARL-UB by Liu,
    Raghunathan, Liang and Finn (2021). It all runs on the CPU.
    """

    def __init__(self, rules: Rules, problems: Float[Tensor, "P M"]) -> None:
        self.rules, self.problems = rules, problems.long()
        self.choices = rules.instructions(self.problems)
        self.plan: Plan = plan(
            rules, self.problems.repeat_interleave(self.choices.shape[1], 0), self.choices.flatten(0, 1)
        )

    @torch.no_grad()
    def trial(
        self,
        params: Float[Tensor, "B M"],
        *,
        resample: Literal["contradicted", "episode"],
        generator: torch.Generator,
        explore: bool = True,
    ) -> ThompsonTrial:
        """One trial in each of ``B`` tasks. Raises ValueError where a task turns out to be none of the problems."""
        env = self.rules.env(params)
        possible = torch.ones(len(params), len(self.problems), dtype=torch.bool)
        again = resample == "contradicted"
        if explore:
            obs, _ = env.reset(options={"explore": True})
            possible, _ = self._episode(env, obs, possible, again, generator, explore=True)
        explored = possible.double().log()
        seed = int(torch.randint(1 << 31, (), generator=generator))
        obs, _ = env.reset(seed=seed)
        _, returns = self._episode(env, obs, possible, again, generator, explore=False)
        return ThompsonTrial(returns, explored.log_softmax(1))

    def _episode(
        self, env: object, obs: Tensor, possible: Tensor, again: bool, generator: torch.Generator, *, explore: bool
    ) -> tuple[Bool[Tensor, "B P"], Float[Tensor, "B"]]:
        """The problems that are possible after an episode, and its return."""
        rules, shown = self.rules, self.rules.spec.obs_dim - self.rules.instruction_dim
        asked = None if explore else obs[:, shown:].long()
        pair = self._drawn(possible, asked, generator)
        instruction = self._instruction(pair)
        stage = torch.zeros_like(pair)
        alive, total = torch.ones(len(pair), dtype=torch.bool), torch.zeros(len(pair))
        for left in range(rules.spec.horizon, 0, -1):
            if again:
                pair, stage = self._again(pair, stage, possible, generator, explore=explore)
                instruction = self._instruction(pair)
            state = rules.recover(obs[:, :shown].long())
            action = self._action(pair, state, stage, alive, left, generator)
            new, reward, terminated, truncated, _ = env.step(action)  # type: ignore[attr-defined]
            total += reward
            columns = (obs.long(), action, reward, new.long())
            fits = rules.consistent(self.problems, *(column.unsqueeze(1) for column in columns))
            possible = possible & (fits | ~alive.unsqueeze(1))
            after = rules.recover(new[:, :shown].long())
            paid = rules.pay(stage, action, after, instruction, self.problems[pair // self.choices.shape[1]])
            alive = alive & ~(terminated | truncated) & ~(paid.over & explore)
            stage, obs = torch.where(alive, paid.stage, 0), new
        return possible, total

    def _action(
        self, pair: Tensor, state: Tensor, stage: Tensor, alive: Tensor, left: int, generator: torch.Generator
    ) -> Int[Tensor, "B"]:
        """One of the best actions for what was drawn; any where that has no plan."""
        planned = alive & self.plan.knows(pair, state, stage)
        start = torch.tensor(self.rules.start)
        state, stage = torch.where(planned.unsqueeze(1), state, start), torch.where(planned, stage, 0)
        best = self.plan.optimal(pair, state, stage, left) | ~planned.unsqueeze(1)
        return torch.multinomial(best.double(), 1, generator=generator).squeeze(1)

    def _drawn(self, possible: Tensor, asked: Tensor | None, generator: torch.Generator) -> Int[Tensor, "B"]:
        """A possible problem and one of its instructions, the one ``asked`` for if there is one, for every row."""
        weights = possible.double().unsqueeze(2).expand(-1, -1, self.choices.shape[1])
        if asked is not None:
            weights = weights * (self.choices == asked[:, None, None]).all(-1)
        weights = weights.flatten(1)
        if not bool((weights.sum(1) > 0).all()):
            raise ValueError(
                f"{self.rules.spec.name}: expected tasks that are among the {len(self.problems)} problems of the "
                f"agent's prior, got one in which none of them is possible; give it a prior that has it"
            )
        return torch.multinomial(weights, 1, generator=generator).squeeze(1)

    def _again(
        self, pair: Tensor, stage: Tensor, possible: Tensor, generator: torch.Generator, *, explore: bool
    ) -> tuple[Int[Tensor, "B"], Int[Tensor, "B"]]:
        """A new problem for the rows whose own is contradicted, with the instruction they had if it has it."""
        count = self.choices.shape[1]
        rows = (~possible.gather(1, (pair // count).unsqueeze(1))).squeeze(1).nonzero().squeeze(1)
        if not len(rows):
            return pair, stage
        pair, stage, had = pair.clone(), stage.clone(), self._instruction(pair[rows])
        new = self._drawn(possible[rows], None if explore else had, generator)
        same = (self.choices[new // count] == had.unsqueeze(1)).all(-1)
        kept = same.any(1)  # always so in an episode with an instruction
        pair[rows] = torch.where(kept, new // count * count + same.int().argmax(1), new)
        stage[rows] = torch.where(kept, stage[rows], 0)
        return pair, stage

    def _instruction(self, pair: Tensor) -> Int[Tensor, "B I"]:
        return self.choices.flatten(0, 1)[pair]
