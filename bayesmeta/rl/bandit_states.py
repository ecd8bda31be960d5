"""The belief states of exchangeable Bernoulli arms, and values on them.

A belief is the successes and failures of every arm. Beliefs that differ by the arms' names only are one state: a
multiset of counts. Layer ``n`` holds all states after ``n`` pulls; a pull leads from one layer to the next.

An arm of ``m`` pulls, ``f`` of them failures, has the code ``m (m + 1) / 2 + f``. A state's key is the sum of the
hashes of its arms' codes, 0 for an arm not pulled: a pull changes one term, and order does not count. ``G`` is the
number of states of a layer, ``W`` that of the arms told apart: of those not pulled yet there is one column.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int, UInt64
from numpy import ndarray


@dataclass(frozen=True)
class Layer:
    """All states after as many pulls: sorted ``keys [G]`` and the ``codes [G, W]`` of their arms, in falling order."""

    keys: UInt64[ndarray, "G"]
    codes: Int[ndarray, "G W"]


@dataclass(frozen=True)
class Values:
    """Expected returns ``values [G]`` of the pulls that follow, by the sorted ``keys [G]`` of the states of a layer."""

    keys: UInt64[ndarray, "G"]
    values: Float64[ndarray, "G"]


def belief_states(arms: int, horizon: int) -> int:
    """How many states precede one of ``horizon`` pulls: multisets of ``arms`` counts, fewer than ``horizon`` in sum.

    An arm pulled ``m`` times is in one of ``m + 1`` states, so ``c`` such arms are in one of ``C(m + c, c)``.
    """
    most = min(arms, horizon - 1)
    table = np.zeros((horizon, most + 1))  # by the pulls in all and the number of arms that were pulled
    table[0, 0] = 1
    for m in range(1, horizon):
        before = table.copy()
        for c in range(1, min(most, (horizon - 1) // m) + 1):
            table[m * c :, c:] += math.comb(m + c, c) * before[: horizon - m * c, : most + 1 - c]
    return int(table.sum())


def layers(arms: int, horizon: int, max_states: int) -> list[Layer]:
    """The states before each of ``horizon`` pulls. Raises ValueError if they are more than ``max_states``."""
    # Ordered counts of some of the arms, over the number of their orders: a bound from below, fast for any size.
    some = range(1, min(arms, 40) + 1)
    count = max(math.comb(horizon - 1 + 2 * w, 2 * w) // math.factorial(w) for w in some)
    least = "at least " if count > max_states else ""
    count = count if least else belief_states(arms, horizon)
    if count > max_states:
        raise ValueError(
            f"bandits: expected at most {max_states} belief states, got {least}10^{math.log10(count):.1f} for {arms} "
            f"arms and {horizon} pulls; take fewer of either, or raise max_states: up to 600 bytes each"
        )
    table = hashes(horizon)
    found = [Layer(np.zeros(1, np.uint64), np.zeros((1, 1), np.int32))]
    for _ in range(1, horizon):
        keys, codes = found[-1].keys, found[-1].codes
        width = codes.shape[1]
        after = _following(codes).reshape(len(codes), 2 * width)
        reached = keys[:, None] + table[after] - np.tile(table[codes], 2)
        keys, first = np.unique(reached, return_index=True)
        row, change = np.divmod(first, 2 * width)
        grown = np.zeros((len(keys), min(arms, width + 1)), np.int32)
        grown[:, :width] = codes[row]
        grown[np.arange(len(keys)), change % width] = after[row, change]
        found.append(Layer(keys, -np.sort(-grown, axis=1)))
    if sum(len(layer.keys) for layer in found) != count:
        raise RuntimeError("bandits: two belief states have one key; change the seed of bandit_states.hashes")
    return found


def backward(
    states: Sequence[Layer], alpha: float, beta: float, choose: Callable[[ndarray, ndarray], ndarray]
) -> list[Values]:
    """The values of a policy on every layer: ``choose(codes [G, W], action_values [G, W]) -> [G]`` is their mean."""
    table = hashes(len(states))
    solved: list[Values] = []
    for layer in reversed(states):
        after = solved[-1] if solved else None
        values = choose(layer.codes, action_values(layer.codes, after, table, alpha, beta))
        solved.append(Values(layer.keys, values))
    return solved[::-1]


def action_values(
    codes: Int[ndarray, "G W"], after: Values | None, table: UInt64[ndarray, "C"], alpha: float, beta: float
) -> Float64[ndarray, "G W"]:
    """``p_a (1 + V(success)) + (1 - p_a) V(failure)`` of every arm of every state; nothing follows on the last pull."""
    pulls, failures = counts(codes)
    p = (alpha + pulls - failures) / (alpha + beta + pulls)
    if after is None:
        return p
    hashed = table[codes]
    others = hashed.sum(1, keepdims=True) - hashed
    won, lost = (
        after.values[np.searchsorted(after.keys, others + table[code])] for code in _following(codes).swapaxes(0, 1)
    )
    return p * (1 + won) + (1 - p) * lost


def hashes(horizon: int) -> UInt64[ndarray, "C"]:
    """One random number for each code of up to ``horizon`` pulls, 0 for no pulls."""
    table = np.random.default_rng(0).integers(1 << 64, size=(horizon + 1) * (horizon + 2) // 2, dtype=np.uint64)
    table[0] = 0
    return table


def counts(codes: Int[ndarray, "*s"]) -> tuple[Int[ndarray, "*s"], Int[ndarray, "*s"]]:
    """Pulls and failures."""
    pulls = ((np.sqrt(8.0 * codes + 1.0) - 1.0) // 2.0).astype(codes.dtype)
    return pulls, codes - pulls * (pulls + 1) // 2


def _following(codes: Int[ndarray, "G W"]) -> Int[ndarray, "G 2 W"]:
    """The code of each arm after a success and after a failure."""
    won = codes + counts(codes)[0] + 1
    return np.stack([won, won + 1], 1)
