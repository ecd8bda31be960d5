"""A finite meta-training set: finitely many training tasks, each with finitely many data that never change."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bayesmeta.types import Context, SupervisedFamily, to

_TOLD = ("model", "exact", "mean")  # what a family may know of itself


class FixedTasks:
    """A supervised family of which only ``tasks`` tasks with ``shots`` data each are ever seen in training.

    ``train`` tasks are drawn with replacement from that set, which follows from ``seed``, and their context is a random
    subset, without replacement, of their own data: meta-learners can overfit the set, as they can with real data. The
    other splits, whose tasks and data are always fresh, are the ``family``'s, and so are ``model``, ``exact`` and
    ``mean`` if it has them: the model is the law that the set was drawn from.

    A training task is known by its parameters, so they must differ from one another, and from those of all other
    splits, as draws of a continuous law do. Its data are given in random order: none of them may be special.

    Raises ValueError for fewer than one task or datum, and for a family that draws the same task twice.
    """

    def __init__(self, family: SupervisedFamily, *, tasks: int = 100, shots: int = 10, seed: int = 0) -> None:
        if tasks < 1 or shots < 1:
            raise ValueError(f"FixedTasks: expected at least one task and one datum of each, got {tasks} and {shots}")
        generator = torch.Generator().manual_seed(seed)
        self.family, self.spec = family, family.spec
        # Attributes of the instance, because that is where Protocols look from Python 3.12 on.
        vars(self).update({name: getattr(family, name) for name in _TOLD if hasattr(family, name)})
        self.tasks = family.sample(tasks, "train", generator)
        self.data = family.context(self.tasks, shots, generator)
        if len(self.tasks.unique(dim=0)) < tasks:
            raise ValueError(
                f"FixedTasks: expected {tasks} different tasks, got some twice from {family.spec.name}; a family of "
                f"finitely many tasks needs no fixed set"
            )

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n M"]:
        """Parameters of ``n`` tasks of a split."""
        if split != "train":
            return self.family.sample(n, split, generator)  # type: ignore[arg-type]
        index = torch.randint(len(self.tasks), (n,), generator=generator, device=generator.device)
        return self.tasks.to(index.device)[index]

    def context(self, params: Float[Tensor, "B M"], shots: int, generator: torch.Generator) -> Context:
        """``shots`` data of each task: of a training task its own, else fresh ones.

        Raises ValueError where a training task has fewer.
        """
        fresh = self.family.context(params, shots, generator)
        known, index = self._known(params)
        if not known.any():
            return fresh
        if shots > self.data.size:
            raise ValueError(
                f"FixedTasks: expected at most {self.data.size} data of a training task, got shots = {shots}, support "
                f"and query together; draw fewer, or fix more by a larger `shots`"
            )
        order = torch.rand(len(params), self.data.size, generator=generator, device=params.device).argsort(1)
        own = to(self.data, params.device)
        x, y, mask = (v[index.unsqueeze(1), order[:, :shots]] for v in (own.x, own.y, own.mask))
        rows = known.unsqueeze(1)
        x, y = (torch.where(rows.unsqueeze(1), a, b) for a, b in ((x, fresh.x), (y, fresh.y)))
        return Context(x, y, torch.where(rows, mask, fresh.mask))

    def _known(self, params: Float[Tensor, "B M"]) -> tuple[Bool[Tensor, "B"], Int[Tensor, "B"]]:
        """Whether each row is a training task, and which."""
        same = (params.unsqueeze(1) == self.tasks.to(params.device)).all(-1)
        return same.any(1), same.int().argmax(1)
