"""What it costs to learn to explore from the reward of what follows: trials against the number of actions, in tables.

In ``reveal`` there are as many problems as actions, one action of exploration tells the problem, and one action of
execution is paid. Two learners whose tables hold averages over all trials so far, both acting at random throughout:

- end to end: exploring by ``a`` is worth the best average reward of what was done after what ``a`` showed;
- decoupled, as DREAM: it is worth what the belief gained, ``log q(problem | shown) - log q(problem)``, with ``q`` the
  frequencies so far (each counted once more), and execution is learned by one who is told the problem.

Printed: after how many trials the greedy exploration is the one that tells, for good, and after how many both
episodes are optimal in every problem; medians (90 % range) over repeats, and the slopes of their logarithms against
that of the number of actions, of the bare trials and divided by its logarithm, fitted to the medians.

    python -m benchmarks.coupled_exploration [--quick]

Liu, Raghunathan, Liang and Finn (2021) state of such a world that exploring end to end needs of the order of
``A^2 log A`` samples and DREAM ``A log A``.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bayesmeta.tasks.reveal import TELLS, Reveal
from benchmarks._timing import arguments, machine, table, threads


class Tables:
    """What ``repeats`` learners of each kind have counted of trials in a world of ``A`` actions and problems."""

    def __init__(self, actions: int, repeats: int, seed: int) -> None:
        self.world, self.actions, self.repeats = Reveal(actions=actions), actions, repeats
        self.explored = torch.zeros(repeats, actions, actions)  # action, problem
        self.shown = torch.zeros(repeats, 1 + actions, actions)  # what was shown, problem
        self.done = torch.zeros(repeats, 1 + actions, actions)  # what was shown, action of execution
        self.paid = torch.zeros(repeats, 1 + actions, actions)
        self.told = torch.zeros(repeats, actions, actions)  # reward by problem and action
        self._generator = torch.Generator().manual_seed(seed)

    def add(self, trials: int) -> None:
        """Count that many further trials, the actions of which are random."""
        shape = (self.repeats, trials)
        problem, first, second = (
            torch.randint(self.actions, shape, generator=self._generator).unsqueeze(-1) for _ in range(3)
        )
        start, asked = torch.zeros_like(problem), torch.ones_like(problem)
        shown = self.world.advance(start, first[..., 0], problem)
        after = self.world.advance(start, second[..., 0], problem)
        reward = self.world.pay(start[..., 0], second[..., 0], after, asked, problem).reward
        ones = torch.ones(shape)
        for counts, row, column, value in (
            (self.explored, first, problem, ones),
            (self.shown, shown, problem, ones),
            (self.done, shown, second, ones),
            (self.paid, shown, second, reward),
            (self.told, problem, second, reward),
        ):
            index = (row * counts.shape[2] + column)[..., 0]
            counts.flatten(1).scatter_add_(1, index, value)

    def end_to_end(self) -> Float[Tensor, "R A"]:
        """What each exploration is worth by the rewards so far; 0 for one that was never tried."""
        best = (self.paid / self.done.clamp_min(1)).amax(-1)  # of what was shown
        tried = self.explored.sum(-1)
        worth = best[:, :1] * (tried > 0)
        worth[:, TELLS] = (self.explored[:, TELLS] * best[:, 1:]).sum(-1) / tried[:, TELLS].clamp_min(1)
        return worth

    def decoupled(self) -> Float[Tensor, "R A"]:
        """What each exploration is worth by what the belief gained so far; 0 for one that was never tried."""
        before = ((self.shown.sum(1) + 1) / (self.shown.sum((1, 2)) + self.actions).unsqueeze(-1)).log()
        after = ((self.shown + 1) / (self.shown.sum(-1, keepdim=True) + self.actions)).log()
        gained = (after[:, 0] - before).unsqueeze(1).repeat(1, self.actions, 1)  # action, problem
        gained[:, TELLS] = after[:, 1:].diagonal(dim1=1, dim2=2) - before
        return (self.explored * gained).sum(-1) / self.explored.sum(-1).clamp_min(1)

    def execution(self) -> tuple[Int[Tensor, "R"], Int[Tensor, "R"]]:
        """In how many problems the paid action was found: of those told by exploration, and by the identifier."""
        paid = self.paid[:, 1:].diagonal(dim1=1, dim2=2)
        return (paid > 0).sum(1), (self.told.diagonal(dim1=1, dim2=2) > 0).sum(1)


def trials_needed(actions: int, repeats: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """For each repeat the trials after which a learner was right for good: of exploring, and of the whole.

    What pays is found in every problem after some ``A^2 log A`` trials, or ``A^3 log A`` if only exploration tells it;
    six times as many are made. Raises RuntimeError if one of the learners is still wrong then.
    """
    order = actions**2 * math.log(actions)
    found = {}
    for kind, horizon in (("decoupled", 6 * order), ("end to end", 6 * actions * order)):
        tables, trials = Tables(actions, repeats, seed), 0
        explores, whole = torch.zeros(repeats), torch.zeros(repeats)
        while trials < horizon:
            step = min(20_000, max(1, trials // 40))  # 2.5 % at most
            tables.add(step)
            trials += step
            worth = tables.decoupled() if kind == "decoupled" else tables.end_to_end()
            others = worth.index_fill(1, torch.tensor([TELLS]), -math.inf).amax(1)
            right = worth[:, TELLS] > others
            executes = tables.execution()[kind == "decoupled"] == actions
            explores = torch.where(right, explores, trials)
            whole = torch.where(right & executes, whole, trials)
        if not (right & executes).all():
            raise RuntimeError(f"{actions} actions, {kind}: still wrong after {trials} trials; another seed is needed")
        found[f"{kind}, exploration"], found[f"{kind}, whole trial"] = explores.numpy(), whole.numpy()
    return found


def slope(actions: Sequence[int], trials: Sequence[float]) -> float:
    return float(np.polyfit(np.log(actions), np.log(trials), 1)[0])


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__, argv)
    print(machine())
    sizes, repeats = ((4, 8), 20) if options.quick else ((4, 8, 16, 32, 64), 50)
    with threads(1):
        found = [trials_needed(actions, repeats) for actions in sizes]
    rows = []
    for name in found[0]:
        medians = [float(np.median(result[name])) for result in found]
        cells = [
            f"{median:,.0f} ({np.quantile(result[name], 0.05):,.0f}-{np.quantile(result[name], 0.95):,.0f})"
            for median, result in zip(medians, found, strict=True)
        ]
        without_log = [median / math.log(actions) for median, actions in zip(medians, sizes, strict=True)]
        rows.append([name, *cells, f"{slope(sizes, medians):.2f}", f"{slope(sizes, without_log):.2f}"])
    print(table(["trials", *(f"{a} actions" for a in sizes), "slope", "slope of trials / log A"], rows))


if __name__ == "__main__":
    main()
