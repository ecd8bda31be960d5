"""Ambiguous classification in the plane: which points lie inside an unknown circle, perhaps from positives alone."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bayesmeta.inference.beliefs import Weighted
from bayesmeta.inference.finite import FiniteFilter
from bayesmeta.inference.grid import grid
from bayesmeta.models.circle import CircleModel, area_within, inside
from bayesmeta.tasks.splits import is_ood
from bayesmeta.types import Context, Spec

_HALF = 5.0  # inputs are uniform on [-5, 5]^2


class Circles:
    """``circles-v1``: class 1 inside a circle, class 0 outside, inputs ``x ~ U[-5, 5]^2``.

    The centre is ``~ U[-3, 3]^2``, the radius ``~ U[1.5, 4]``: on average a quarter of the inputs are positive. A label
    is wrong with probability ``flip``. ``ood`` circles are smaller and nearer the edge: absolute coordinates ``~ U[3,
    4.5]``, radius ``~ U[0.5, 1.5]``. The problem is that of Finn, Xu and Levine 2018, section 5; the numbers and the
    wrong labels are this library's.

    The first ``positives`` rows of a context, so of its support, have label 1, as if inputs had been drawn until enough
    were labelled so; the others are random. Then *where* they lie tells of the circle, ``p(x | y = 1, z) = p(y = 1 | x,
    z) p(x) / p(y = 1 | z)``, and every such row divides the posterior by the share ``p(y = 1 | z)`` of positives: small
    circles gain. No law of ``y`` given ``x`` says that, nor can a row be told apart by its values. With ``positives >
    0`` ``model`` and ``exact`` are therefore None, and :meth:`belief` has the exact belief.

    Centre and radius are rounded to the middle of one of ``resolution`` cells a side (:class:`CircleModel`), so that
    ``exact``, on a grid of just these cells, has no error however many the data, although the edge is sharp.

    Raises ValueError for ``positives`` < 0 or ``flip`` outside (0, 1/2).
    """

    def __init__(self, *, positives: int = 0, flip: float = 0.02, resolution: int = 24) -> None:
        if positives < 0:
            raise ValueError(f"Circles: expected positives >= 0, got {positives}")
        names = ("centre_x", "centre_y", "radius")
        self.spec = Spec("circles-v1", 2, 2, names, classes=True)
        low, high = torch.tensor([-3.0, -3.0, 1.5]), torch.tensor([3.0, 3.0, 4.0])
        self.labels = CircleModel(low, high, flip=flip, resolution=resolution)
        self.model = None if positives else self.labels
        self.positives, self.flip = positives, flip

    @property
    def exact(self) -> FiniteFilter | None:
        """The posterior on the grid, None where positives are selected."""
        return None if self.positives else self._grid()

    def belief(self, data: Context) -> Weighted:
        """The exact belief after the data of a whole context, which begins with the selected positives.

        ``log w_h`` is that of the labels less ``log p(y = 1 | z = h)`` for each of the selected rows that are real.
        """
        exact = self._grid()
        seen = exact.update(exact.init(data.batch), data)
        selected = data.mask[:, : self.positives].sum(1, keepdim=True)
        return Weighted(seen.points, seen.log_weights - selected * self.share(exact.points).log(), seen.cell)

    def share(self, params: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
        """The probability that an input is labelled 1, of each task."""
        area = area_within(self.labels.circle(params), _HALF)
        return self.flip + (1.0 - 2.0 * self.flip) * area / (2.0 * _HALF) ** 2

    def sample(self, n: int, split: str, generator: torch.Generator) -> Float[Tensor, "n 3"]:
        """Centres and radii of ``n`` circles."""
        device = generator.device
        unit = torch.rand(n, 3, generator=generator, device=device)
        low, high = self.labels.low.to(device), self.labels.high.to(device)
        if not is_ood(self.spec, split):
            return low + (high - low) * unit
        sign = 2.0 * torch.randint(2, (n, 2), generator=generator, device=device) - 1.0
        return torch.cat([sign * (3.0 + 1.5 * unit[:, :2]), 0.5 + unit[:, 2:]], -1)

    def context(self, params: Float[Tensor, "B 3"], shots: int, generator: torch.Generator) -> Context:
        """``shots`` labelled data of each task, the first ``positives`` of them positives."""
        x, label = self._labelled(params, shots, generator)
        selected = (torch.arange(shots, device=params.device) < self.positives).expand_as(label)
        while bool((refused := selected & (label == 0)).any()):
            fresh, again = self._labelled(params, shots, generator)
            x, label = torch.where(refused.unsqueeze(-1), fresh, x), torch.where(refused, again, label)
        return Context.of(x, F.one_hot(label, 2).to(x))

    def mean(self, params: Float[Tensor, "B 3"], x: Float[Tensor, "B N 2"]) -> Float[Tensor, "B N 2"]:
        """The true classes at ``x``, one-hot, with no label flipped."""
        return F.one_hot(inside(self.labels.circle(params).unsqueeze(-2), x).long(), 2).to(x)

    def _labelled(
        self, params: Float[Tensor, "B 3"], count: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "B N 2"], Int[Tensor, "B N"]]:
        """Random inputs and their labels."""
        shape, device = (len(params), count), params.device
        x = 2.0 * _HALF * torch.rand(*shape, 2, generator=generator, device=device) - _HALF
        flipped = torch.rand(shape, generator=generator, device=device) < self.flip
        return x, (inside(self.labels.circle(params).unsqueeze(-2), x) ^ flipped).long()

    def _grid(self) -> FiniteFilter:
        cells = (self.labels.resolution,) * 3
        return grid(self.labels, self.labels.low, self.labels.high, cells, x_dim=2, y_dim=2)
