"""A linear classifier per task on features that all tasks share: the model of VERSA."""

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta.models.batch_norm import BatchNorm, statistics_from
from bayesmeta.models.outputs import ClassOutput
from bayesmeta.models.stacked import run
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context


class ClassHead(TaskModel):
    """``y_n`` is one of ``ways`` classes with logits ``w_c^T features(x_n) + b_c``; ``y`` is its one-hot code.

    The features are any module on the rows ``[N, X]`` of a task with ``feature_dim`` outputs ``F``. The latent holds
    ``(w_c, b_c)``, class after class: ``z [ways (F + 1)] ~ N(0, I)``, a prior that VERSA's objective does not have and
    that stands for what is known of a class without data (Gordon et al. 2019, section 3).

    Features that normalise over rows do so over the queries together, or, in the model :meth:`given` a support, with
    the support's statistics.
    """

    def __init__(self, features: nn.Module, feature_dim: int, ways: int) -> None:
        super().__init__()
        self.features, self.output = features, ClassOutput(ways)
        self.feature_dim, self.ways = feature_dim, ways
        self.register_buffer("zero", torch.zeros(()))  # has the model's dtype and device

    @property
    def mixes_rows(self) -> bool:
        """Whether the features of a datum depend on those beside it."""
        return any(isinstance(module, BatchNorm) for module in self.features.modules())

    def prior(self, batch: int) -> Distribution:
        zeros = self.zero.expand(batch, self.ways * (self.feature_dim + 1))
        return dist.Normal(zeros, torch.ones_like(zeros), validate_args=False).to_event(1)

    def likelihood(self, z: Float[Tensor, "*S B 1 D"], data: Context) -> Distribution:
        return self.classes(z, self.featurised(data.x))

    def featurised(self, x: Float[Tensor, "B N X"]) -> Float[Tensor, "B N F"]:
        """The features of the rows of each task."""
        return run(self.features, {}, x)

    def classes(self, z: Float[Tensor, "*S B 1 D"], features: Float[Tensor, "B N F"]) -> Distribution:
        """The class of data with these features."""
        weights, biases = z.unflatten(-1, (self.ways, -1)).squeeze(-3).split([self.feature_dim, 1], -1)
        return self.output(features @ weights.mT + biases.mT)

    def given(self, support: Context) -> TaskModel:
        """The model of predicting each query by itself."""
        return _Given(self, support) if self.mixes_rows and support.size else self


class _Given(TaskModel):
    """A class head whose features are normalised with the support's statistics, whatever the data."""

    def __init__(self, model: ClassHead, support: Context) -> None:
        super().__init__()
        self.model, self.support = model, support

    def prior(self, batch: int) -> Distribution:
        return self.model.prior(batch)

    def likelihood(self, z: Float[Tensor, "*S B 1 D"], data: Context) -> Distribution:
        with statistics_from(self.support.size):
            features = self.model.featurised(torch.cat([self.support.x, data.x], 1))
        return self.model.classes(z, features[:, self.support.size :])
