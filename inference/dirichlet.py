"""The exact posterior of a table of transition probabilities: Dirichlet-multinomial counting."""

from dataclasses import dataclass

import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta.inference.evidence import checked, prefix_sums
from bayesmeta.models.dirichlet import DirichletModel, DirichletRows
from bayesmeta.types import Context


@dataclass(frozen=True)
class DirichletBelief:
    """Independent Dirichlet rows of a table: ``concentration [B, X, Y]`` > 0, prior plus counts."""

    concentration: Float[Tensor, "B X Y"]

    @property
    def posterior(self) -> Distribution:
        """Batch ``[B]``, event ``[X * Y]``, the table row by row."""
        return DirichletRows(self.concentration)


class ConjugateDirichlet(nn.Module):
    """The posterior of :class:`DirichletModel`: entry ``(x, y)`` of the concentration counts transitions ``x -> y``."""

    def __init__(self, model: DirichletModel) -> None:
        super().__init__()
        self.model = model

    def init(self, batch: int) -> DirichletBelief:
        return DirichletBelief(self.model.concentration.expand(batch, -1, -1))

    def update(self, belief: DirichletBelief, data: Context) -> DirichletBelief:
        """The belief after also seeing ``data``. Raises ValueError if a row of ``x`` or ``y`` is not one-hot."""
        data = self._checked(belief, data)
        return DirichletBelief(belief.concentration + data.x.mT @ data.y)

    def scan(self, belief: DirichletBelief, data: Context) -> DirichletBelief:
        """The beliefs at every prefix, batch ``(N + 1) B``: row ``n B + b`` is task ``b`` after ``n`` rows."""
        data = self._checked(belief, data)
        return DirichletBelief(prefix_sums(belief.concentration, data.x.unsqueeze(-1) * data.y.unsqueeze(-2)))

    def predictive(self, belief: DirichletBelief, x: Float[Tensor, "B N X"]) -> Distribution:
        """The Bayes-optimal predictive, the posterior mean of row ``x``: batch ``[B, N]``, event ``[Y]``, one-hot."""
        concentration = x @ belief.concentration
        return dist.OneHotCategorical(logits=concentration.log())

    def _checked(self, belief: DirichletBelief, data: Context) -> Context:
        batch, rows, columns = belief.concentration.shape
        data = checked("ConjugateDirichlet", data, batch=batch, x_dim=rows, y_dim=columns)
        for name, value in (("x", data.x), ("y", data.y)):
            if not (((value == 0) | (value == 1)).all(-1) & (value.sum(-1) == data.mask)).all():
                raise ValueError(
                    f"ConjugateDirichlet: expected x one-hot in the row of the table and y one-hot in the outcome, got "
                    f"other values of {name}; encode both with torch.nn.functional.one_hot"
                )
        return data
