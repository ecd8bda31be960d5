"""Sinusoid regression, the benchmark of gradient-based meta-learning, with its posterior on a grid."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.inference.finite import FiniteFilter
from bayesmeta.inference.grid import grid
from bayesmeta.models.sinusoid import SinusoidModel, sinusoid
from bayesmeta.tasks.fixed_tasks import FixedTasks
from bayesmeta.tasks.splits import is_ood
from bayesmeta.types import Context, Spec

_LOW, _HIGH = torch.tensor([0.1, 0.0]), torch.tensor([5.0, math.pi])
_OOD_HIGH = torch.tensor([8.0, 1.5 * math.pi])


class Sinusoid:
    """``sinusoid-v1``: ``y = a sin(x - phi) + eps``, ``a ~ U[0.1, 5]``, ``phi ~ U[0, pi]``, ``x ~ U[-5, 5]``.

    The ranges of Finn, Abbeel and Levine 2017 (section 5.1). ``noise`` is the standard deviation of ``eps``, >= 0.
    ``ood`` tasks lie beyond the prior in both parameters: ``a ~ U[5, 8]``, ``phi ~ U[pi, 3 pi / 2]``.

    The published benchmark is ``noise=0``. Then there is no likelihood and, from two data on, no density to infer:
    ``model`` and ``exact`` are None. Otherwise ``exact`` is a grid of ``resolution`` cells a side; its error grows as
    ``noise`` falls.

    With ``train_tasks`` meta-training sees only that many tasks with ``train_shots`` data each, which follow from
    ``data_seed`` and never change (see :class:`FixedTasks`), as 100 or 1000 in Yoon et al. 2018.

    Raises ValueError for ``noise`` < 0.
    """

    def __init__(
        self,
        *,
        noise: float = 0.3,
        resolution: int = 200,
        train_tasks: int | None = None,
        train_shots: int = 10,
        data_seed: int = 0,
    ) -> None:
        if not noise >= 0:
            raise ValueError(f"Sinusoid: noise is a standard deviation, expected >= 0, got {noise}")
        self.spec = Spec("sinusoid-v1", 1, 1, ("amplitude", "phase"))
        self.model = SinusoidModel(noise=noise) if noise > 0 else None
        self.noise, self.resolution = noise, resolution
        self.training = None
        if train_tasks is not None:
            self.training = FixedTasks(Sinusoid(noise=noise), tasks=train_tasks, shots=train_shots, seed=data_seed)

    @property
    def exact(self) -> FiniteFilter | None:
        """The posterior on the grid, None without noise."""
        cells = (self.resolution, self.resolution)
        return None if self.model is None else grid(self.model, _LOW, _HIGH, cells, x_dim=1, y_dim=1)

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n 2"]:
        """Amplitude and phase of ``n`` tasks."""
        if split == "train" and self.training is not None:
            return self.training.sample(n, split, generator)
        low, high = (_HIGH, _OOD_HIGH) if is_ood(self.spec, split) else (_LOW, _HIGH)
        unit = torch.rand(n, 2, generator=generator, device=generator.device)
        return low.to(unit.device) + (high - low).to(unit.device) * unit

    def context(self, params: Float[Tensor, "B 2"], shots: int, generator: torch.Generator) -> Context:
        """``shots`` labelled data of each task: of a fixed training task its own, else fresh ones.

        Raises ValueError where a fixed training task has fewer.
        """
        if self.training is not None:
            return self.training.context(params, shots, generator)
        x = 10.0 * torch.rand(len(params), shots, 1, generator=generator, device=params.device) - 5.0
        noise = torch.randn(x.shape, generator=generator, device=params.device)
        return Context.of(x, self.mean(params, x) + self.noise * noise)

    def mean(self, params: Float[Tensor, "B 2"], x: Float[Tensor, "B N 1"]) -> Float[Tensor, "B N 1"]:
        """The tasks' functions at ``x``, without noise."""
        return sinusoid(params.unsqueeze(-2), x)
