"""Exact planning in finite deterministic worlds whose problem is known: backward induction over what can be reached."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from bayesmeta.rl.rules import Rules

# Returns that differ by less are the same: rewards are float32, and an episode adds up tens of them.
_TIE = 1e-5


@dataclass(frozen=True)
class Plan:
    """Optimal values of ``G`` pairs of a problem and an instruction, for every number of steps left up to the horizon.

    A node is a pair, a state and a stage that can be reached; ``keys [N]`` are their sorted codes, ``next [N, A]`` the
    nodes that actions lead to, ``reward [N, A]`` what they pay, ``over [N, A]`` whether that ends the episode.
    ``values [H + 1, N]`` are the best returns from there on with ``0, ..., H`` steps left. A plan that does without
    some actions has ``-inf`` as their reward.
    """

    rules: Rules
    keys: Int[Tensor, "N"]
    next: Int[Tensor, "N A"]
    reward: Float64[Tensor, "N A"]
    over: Bool[Tensor, "N A"]
    values: Float64[Tensor, "H N"]

    @property
    def start_values(self) -> Float64[Tensor, "G"]:
        """The best return of a whole episode of every pair."""
        pairs = int(self.keys[-1]) // _size(self.rules) + 1
        pair = torch.arange(pairs, device=self.keys.device)
        state = torch.tensor(self.rules.start, device=pair.device).expand(pairs, -1)
        return self.value(pair, state, torch.zeros_like(pair), self.rules.spec.horizon)

    def knows(self, pair: Int[Tensor, "B"], state: Int[Tensor, "B s"], stage: Int[Tensor, "B"]) -> Bool[Tensor, "B"]:
        """Whether these can be reached from the start, so that there is a plan for them."""
        return self._found(_encode(self.rules, pair, state, stage))[1]

    def value(
        self, pair: Int[Tensor, "B"], state: Int[Tensor, "B s"], stage: Int[Tensor, "B"], left: int
    ) -> Float64[Tensor, "B"]:
        """The best return of the ``left`` steps that are left. Raises ValueError for what cannot be reached."""
        return self.values[left, self._node(pair, state, stage)]

    def action_values(
        self, pair: Int[Tensor, "B"], state: Int[Tensor, "B s"], stage: Int[Tensor, "B"], left: int
    ) -> Float64[Tensor, "B A"]:
        """The return of each action with ``left >= 1`` steps left, and of the best ones after it."""
        return self._action_values(self._node(pair, state, stage), left)

    def optimal(
        self, pair: Int[Tensor, "B"], state: Int[Tensor, "B s"], stage: Int[Tensor, "B"], left: int
    ) -> Bool[Tensor, "B A"]:
        """The actions that are as good as the best; a greedy policy takes the first, ``.int().argmax(1)``."""
        values = self.action_values(pair, state, stage, left)
        return values >= values.amax(1, keepdim=True) - _TIE

    def _action_values(self, node: Int[Tensor, "B"], left: int) -> Float64[Tensor, "B A"]:
        later = self.values[left - 1][self.next[node]].masked_fill(self.over[node], 0.0)
        values = self.reward[node] + later
        if self.rules.end is not None:
            values[:, self.rules.end] += self.rules.step_reward * (left - 1)
        return values

    def _node(self, pair: Tensor, state: Tensor, stage: Tensor) -> Int[Tensor, "B"]:
        node, known = self._found(_encode(self.rules, pair, state, stage))
        if not bool(known.all()):
            row = int((~known).nonzero()[0])
            raise ValueError(
                f"{self.rules.spec.name}: expected states that can be reached from {self.rules.start}, got "
                f"{state[row].tolist()} at stage {int(stage[row])} of pair {int(pair[row])}"
            )
        return node

    def _found(self, keys: Int[Tensor, "B"]) -> tuple[Int[Tensor, "B"], Bool[Tensor, "B"]]:
        node = torch.searchsorted(self.keys, keys).clamp_max(len(self.keys) - 1)
        return node, self.keys[node] == keys


def plan(
    rules: Rules,
    params: Int[Tensor, "G M"],
    instruction: Int[Tensor, "G I"],
    *,
    forbidden: tuple[int, ...] = (),
) -> Plan:
    r"""Plan for ``G`` pairs of a problem and an instruction at once, without the ``forbidden`` actions.

    .. math:: V_k(s) = \max_a r(s, a) + (1 - over(s, a)) V_{k - 1}(s'), \qquad V_0 = 0
    """
    keys, following, reward, over = _explored(rules, params, instruction)
    reward[:, list(forbidden)] = -torch.inf
    values = reward.new_zeros(rules.spec.horizon + 1, len(keys))
    found = Plan(rules, keys, torch.searchsorted(keys, following), reward, over, values)
    everywhere = torch.arange(len(keys), device=keys.device)
    for left in range(1, rules.spec.horizon + 1):
        values[left] = found._action_values(everywhere, left).amax(1)
    return found


def _explored(
    rules: Rules, params: Tensor, instruction: Tensor
) -> tuple[Int[Tensor, "N"], Int[Tensor, "N A"], Float64[Tensor, "N A"], Bool[Tensor, "N A"]]:
    """All that can be reached: sorted keys, the keys that actions lead to, what they pay, whether they end it.

    Wave after wave, all pairs together. Where an action ends the episode it leads to where it started from.
    """
    pair = torch.arange(len(params), device=params.device)
    state = torch.tensor(rules.start, device=pair.device).expand(len(pair), -1)
    new = known = _encode(rules, pair, state, torch.zeros_like(pair))
    action = torch.arange(rules.spec.actions, device=pair.device)
    waves = []
    while len(new):
        pair, state, stage = (part.unsqueeze(1) for part in _decode(rules, new))
        after = rules.advance(state, action, params[pair])
        paid = rules.pay(stage.expand(-1, len(action)), action, after, instruction[pair], params[pair])
        over = paid.over | (action == (-1 if rules.end is None else rules.end))
        following = torch.where(over, new.unsqueeze(1), _encode(rules, pair, after, paid.stage))
        waves.append((new, following, paid.reward.double(), over))
        reached = following.unique()
        at = torch.searchsorted(known, reached).clamp_max(len(known) - 1)
        new = reached[known[at] != reached]
        known = torch.cat([known, new]).sort().values
    keys, following, reward, over = (torch.cat(column) for column in zip(*waves, strict=True))
    order = keys.argsort()
    return keys[order], following[order], reward[order], over[order]


def _size(rules: Rules) -> int:
    """How many codes a pair has."""
    return int(torch.tensor(rules.state_sizes).prod()) * rules.stages


def _encode(rules: Rules, pair: Tensor, state: Tensor, stage: Tensor) -> Tensor:
    code = pair
    for value, size in zip(state.unbind(-1), rules.state_sizes, strict=True):
        code = code * size + value
    return code * rules.stages + stage


def _decode(rules: Rules, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    keys, stage = keys // rules.stages, keys % rules.stages
    columns = []
    for size in reversed(rules.state_sizes):
        columns.append(keys % size)
        keys = keys // size
    return keys, torch.stack(columns[::-1], -1), stage
