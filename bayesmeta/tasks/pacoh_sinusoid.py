"""The sinusoids of PACOH: few training tasks with few data each, where meta-learners overfit."""

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.inference.partly_linear import PartlyLinearGrid
from bayesmeta.models.tilted_sinusoid import TiltedSinusoidModel
from bayesmeta.tasks.fixed_tasks import FixedTasks
from bayesmeta.tasks.splits import is_ood
from bayesmeta.types import Context, Spec

_CUT = 4.5  # standard deviations of the x-shift's prior that the grid covers: all but 7e-6 of its mass


class PacohSinusoid:
    """``pacoh_sinusoid-v1``: ``y = slope x + a sin(1.5 (x - x_shift)) + y_shift + eps``, ``x ~ U[-5, 5]``.

    ``a ~ U[0.7, 1.3]``, ``x_shift ~ N(0, 0.1^2)``, ``y_shift ~ N(5, 0.1^2)``, ``slope ~ N(0.5, 0.2^2)``; ``noise`` > 0
    is the standard deviation of ``eps``. The sinusoid environment of Rothfuss et al. 2021, whose code makes the second
    arguments standard deviations and 1.5, called a period, a frequency. In ``ood`` tasks ``a ~ U[1.3, 1.9]`` and the
    others have three times their standard deviation.

    The protocol is part of the environment: meta-training sees ``train_tasks`` tasks with ``train_shots`` data each,
    which follow from ``data_seed`` and never change (see :class:`FixedTasks`). ``train_tasks=None`` draws fresh ones.

    ``exact`` is a grid of ``resolution`` cells a side over amplitude and x-shift, y-shift and slope in closed form.
    """

    def __init__(
        self,
        *,
        noise: float = 0.1,
        train_tasks: int | None = 20,
        train_shots: int = 5,
        data_seed: int = 0,
        resolution: int = 64,
    ) -> None:
        self.spec = Spec("pacoh_sinusoid-v1", 1, 1, ("amplitude", "x_shift", "y_shift", "slope"))
        self.model = TiltedSinusoidModel(noise=noise)
        self.resolution = resolution
        self.training = None
        if train_tasks is not None:
            fresh = PacohSinusoid(noise=noise, train_tasks=None)
            self.training = FixedTasks(fresh, tasks=train_tasks, shots=train_shots, seed=data_seed)

    @property
    def exact(self) -> PartlyLinearGrid:
        """The posterior on the grid."""
        (least, most), reach = self.model.amplitude.tolist(), _CUT * float(self.model.shift_scale)
        low, high = torch.tensor([least, -reach]), torch.tensor([most, reach])
        return PartlyLinearGrid(self.model, low, high, (self.resolution, self.resolution), x_dim=1)

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n 4"]:
        """Amplitude, shifts and slope of ``n`` tasks."""
        if split == "train" and self.training is not None:
            return self.training.sample(n, split, generator)
        ood, model, device = is_ood(self.spec, split), self.model, generator.device
        low, high = model.amplitude.tolist()
        amplitude = low + (high - low) * (torch.rand(n, 1, generator=generator, device=device) + ood)
        noise = torch.randn(n, 3, generator=generator, device=device) * (3.0 if ood else 1.0)
        linear = model.mean.to(device) + model.scale.to(device) * noise[:, 1:]
        return torch.cat([amplitude, model.shift_scale.to(device) * noise[:, :1], linear], -1)

    def context(self, params: Float[Tensor, "B 4"], shots: int, generator: torch.Generator) -> Context:
        """``shots`` labelled data of each task: of a fixed training task its own, else fresh ones.

        Raises ValueError where a fixed training task has fewer.
        """
        if self.training is not None:
            return self.training.context(params, shots, generator)
        x = 10.0 * torch.rand(len(params), shots, 1, generator=generator, device=params.device) - 5.0
        noise = torch.randn(x.shape, generator=generator, device=params.device)
        return Context.of(x, self.mean(params, x) + self.model.noise * noise)

    def mean(self, params: Float[Tensor, "B 4"], x: Float[Tensor, "B N 1"]) -> Float[Tensor, "B N 1"]:
        """The tasks' functions at ``x``, without noise."""
        return self.model.regression(params.unsqueeze(-2), x)
