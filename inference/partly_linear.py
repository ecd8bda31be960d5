"""The exact posterior where part of the latent is linear: a grid over the rest, and a Gaussian in each of its cells."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta.inference.beliefs import FullGaussian
from bayesmeta.inference.evidence import checked, prefix_sums
from bayesmeta.models.partly_linear import CellsThenNormal, PartlyLinearModel, lattice
from bayesmeta.types import Context

# Residuals are evaluated for so many (cell, task, datum) triples at a time: 1 MiB in fp32 stays in cache.
_EVALUATIONS = 1 << 18


@dataclass(frozen=True)
class PartlyLinearBelief:
    r"""Of ``z = (u, w)``: the evidence for each cell of ``u`` with ``w`` at its prior mean, and ``w`` given the cell.

    ``log_weights [B, G]`` is ``log p(u) - \sum_n r_n^2 / 2`` up to a constant, with residuals ``r`` in units of the
    noise. Less its prior mean, ``w`` has ``information [B, G, W]``, precision times mean, and ``precision [B, W, W]``,
    the same in all cells. The cells are ``counts`` boxes of sides ``cell [U]`` from ``low [U]``; ``mean [W]`` is the
    prior mean. All that depends on data is a sum over data.
    """

    log_weights: Float[Tensor, "B G"]
    information: Float[Tensor, "B G W"]
    precision: Float[Tensor, "B W W"]
    mean: Float[Tensor, "W"]
    low: Float[Tensor, "U"]
    cell: Float[Tensor, "U"]
    counts: tuple[int, ...]

    @property
    def posterior(self) -> CellsThenNormal:
        r"""Batch ``[B]``, event ``[U + W]``: integrating ``w`` out adds ``\eta^T \Lambda^{-1} \eta / 2`` to weights."""
        linear: Any = FullGaussian(self.information[:, 0], self.precision).posterior
        root = linear.scale_tril
        white = self.information @ root  # so that Lambda^-1 eta = root white, since Lambda^-1 = root root^T
        log_weights = self.log_weights + 0.5 * white.square().sum(-1)
        return CellsThenNormal(self.low, self.cell, self.counts, log_weights, self.mean + white @ root.mT, root)


class PartlyLinearGrid(nn.Module):
    r"""The posterior of :class:`PartlyLinearModel`: midpoint rule in ``u``, closed form in ``w``.

    With residuals ``r_n = (y_n - curve(u, x_n) - basis(x_n)^T mean) / noise`` at the centre of a cell, the evidence of
    ``w`` less its mean is that of linear regression, ``\Lambda = diag(scale^{-2}) + \sum_n b_n b_n^T`` and ``\eta =
    \sum_n b_n r_n`` with ``b_n = basis(x_n) / noise``. ``[low, high]`` is tiled by ``counts`` boxes; mass of the prior
    outside is cut off, and the error is of second order in a box's side over the posterior's standard deviation.
    """

    low: Tensor
    cell: Tensor

    def __init__(
        self,
        model: PartlyLinearModel,
        low: Float[Tensor, "U"],
        high: Float[Tensor, "U"],
        counts: Sequence[int],
        *,
        x_dim: int,
    ) -> None:
        super().__init__()
        if not (low < high).all():
            raise ValueError(f"PartlyLinearGrid: expected low < high in every dimension, got {low} and {high}")
        self.model, self.counts, self.x_dim = model, tuple(counts), x_dim
        self.register_buffer("low", low)
        self.register_buffer("cell", (high - low) / torch.tensor(self.counts, dtype=low.dtype))

    def init(self, batch: int) -> PartlyLinearBelief:
        points, mean, scale = self._points, self.model.mean, self.model.scale
        log_prior = self.model.outer(len(points)).log_prob(points)
        return PartlyLinearBelief(
            log_prior.expand(batch, -1),
            points.new_zeros(batch, len(points), len(mean)),
            scale.square().reciprocal().diag().expand(batch, -1, -1),
            mean,
            self.low,
            self.cell,
            self.counts,
        )

    def update(self, belief: PartlyLinearBelief, data: Context) -> PartlyLinearBelief:
        """The belief after also seeing ``data``. Raises ValueError on data of a wrong shape or not finite."""
        squares, information, precision = self._evidence(self._checked(belief, data))
        return dataclasses.replace(
            belief,
            log_weights=belief.log_weights + squares,
            information=belief.information + information,
            precision=belief.precision + precision,
        )

    def scan(self, belief: PartlyLinearBelief, data: Context) -> PartlyLinearBelief:
        """The beliefs at every prefix, batch ``(N + 1) B``: row ``n B + b`` is task ``b`` after ``n`` rows."""
        data = self._checked(belief, data)
        rows = [self._evidence(data.rows(n, n + 1)) for n in range(data.size)] or [self._evidence(data)]
        squares, information, precision = (torch.stack(v, 1)[:, : data.size] for v in zip(*rows, strict=True))
        return dataclasses.replace(
            belief,
            log_weights=prefix_sums(belief.log_weights, squares),
            information=prefix_sums(belief.information, information),
            precision=prefix_sums(belief.precision, precision),
        )

    def predictive(self, belief: PartlyLinearBelief, x: Float[Tensor, "B N X"]) -> Distribution:
        """The Bayes-optimal predictive, a mixture of one Gaussian per cell: batch ``[B, N]``, event ``[1]``."""
        posterior, basis = belief.posterior, self.model.basis(x)
        points = self._points[:, None, None].expand(-1, len(x), -1, -1)
        curve = self.model.curve(points, x).squeeze(-1).movedim(0, -1)  # [B, N, G]
        variance = (basis @ posterior.scale_tril).square().sum(-1, keepdim=True) + self.model.noise**2
        each = dist.Normal((curve + basis @ posterior.loc.mT).unsqueeze(-2), variance.sqrt().unsqueeze(-2))
        weights = posterior.log_weights[:, None, None].expand(each.batch_shape)
        return dist.MixtureSameFamily(dist.Categorical(logits=weights), each).to_event(1)

    @property
    def _points(self) -> Float[Tensor, "G U"]:
        return lattice(self.low, self.cell, self.counts)

    def _evidence(self, data: Context) -> tuple[Tensor, Tensor, Tensor]:
        """What data add to ``log_weights``, ``information`` and ``precision``."""
        model, real = self.model, data.mask.unsqueeze(-1)
        basis = model.basis(data.x) * real / model.noise
        y = (data.y - (model.basis(data.x) * model.mean).sum(-1, keepdim=True)) * real / model.noise
        at_once = max(1, _EVALUATIONS // max(1, data.batch * data.size))
        squares, information = [], []
        for part in self._points.split(at_once):
            curve = model.curve(part[:, None, None].expand(-1, data.batch, -1, -1), data.x)
            residual = (y - curve * real / model.noise).squeeze(-1)  # [G, B, N]
            squares.append(-0.5 * residual.square().sum(-1).T)
            information.append(torch.einsum("gbn,bnw->bgw", residual, basis))
        return torch.cat(squares, 1), torch.cat(information, 1), basis.mT @ basis

    def _checked(self, belief: PartlyLinearBelief, data: Context) -> Context:
        return checked("PartlyLinearGrid", data, batch=len(belief.log_weights), x_dim=self.x_dim, y_dim=1)
