"""The exact filter over finitely many hypotheses, whatever the likelihood."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesmeta.inference.beliefs import Weighted
from bayesmeta.inference.evidence import checked, prefix_sums
from bayesmeta.types import Context

# Likelihoods are evaluated for so many (hypothesis, task, datum) triples at a time: 1 MiB in fp32 stays in cache.
_EVALUATIONS = 1 << 18


class FiniteFilter(nn.Module):
    r"""``log w_h \leftarrow log w_h + \sum_n log p(y_n | x_n, z = h)`` for each of ``H`` hypotheses.

    ``points [H, D]``, ``log_weights [H]`` (the prior, up to a constant). ``log_likelihood(z [*S, B, D], data) ->
    [*S, B]`` sums over the real data of each task: ``TaskModel.log_likelihood``, or any function of that signature, for
    instance of transitions with ``x = (s, a), y = r``. ``cell [D]`` is the box each hypothesis stands for, 0 (the
    default) for points; see :func:`bayesmeta.inference.grid.grid`.
    """

    points: Tensor
    log_weights: Tensor
    cell: Tensor

    def __init__(
        self,
        points: Float[Tensor, "H D"],
        log_weights: Float[Tensor, "H"],
        log_likelihood: Callable[[Tensor, Context], Tensor],
        *,
        x_dim: int,
        y_dim: int,
        cell: Float[Tensor, "D"] | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("points", points)
        self.register_buffer("log_weights", log_weights.log_softmax(-1))
        self.register_buffer("cell", torch.zeros_like(points[0]) if cell is None else cell)
        self.log_likelihood = log_likelihood
        self.x_dim, self.y_dim = x_dim, y_dim

    def init(self, batch: int) -> Weighted:
        return Weighted(self.points.expand(batch, -1, -1), self.log_weights.expand(batch, -1), self.cell)

    def update(self, belief: Weighted, data: Context) -> Weighted:
        """The belief after also seeing ``data``.

        Raises ValueError on data of a wrong shape or not finite, and where no hypothesis gives them any probability.
        """
        data = self._checked(belief, data)
        return self._reweighted(belief, belief.log_weights + self._evidence(data))

    def scan(self, belief: Weighted, data: Context) -> Weighted:
        """The beliefs at every prefix, batch ``(N + 1) B``: row ``n B + b`` is task ``b`` after ``n`` rows."""
        data = self._checked(belief, data)
        empty = belief.log_weights.new_zeros(data.batch, 0, belief.log_weights.shape[-1])
        rows = [self._evidence(data.rows(n, n + 1)).unsqueeze(1) for n in range(data.size)]
        return self._reweighted(belief, prefix_sums(belief.log_weights, torch.cat([empty, *rows], 1)))

    def _checked(self, belief: Weighted, data: Context) -> Context:
        return checked("FiniteFilter", data, batch=len(belief.log_weights), x_dim=self.x_dim, y_dim=self.y_dim)

    def _evidence(self, data: Context) -> Float[Tensor, "B H"]:
        at_once = max(1, _EVALUATIONS // max(1, data.batch * data.size))
        parts = [part.unsqueeze(1).expand(-1, data.batch, -1) for part in self.points.split(at_once)]
        return torch.cat([self.log_likelihood(z, data) for z in parts]).T

    def _reweighted(self, belief: Weighted, log_weights: Float[Tensor, "P H"]) -> Weighted:
        impossible = log_weights.amax(-1) == -torch.inf
        if impossible.any():
            raise ValueError(
                f"FiniteFilter: no hypothesis gives the data of {int(impossible.sum())} tasks any probability, the "
                f"first being task {int(impossible.nonzero()[0]) % len(belief.log_weights)}; the list lacks the truth "
                f"or the likelihood has no noise"
            )
        return Weighted(self.points.expand(len(log_weights), -1, -1), log_weights.log_softmax(-1), self.cell)
