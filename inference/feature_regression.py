"""The exact posterior of linear regression in features: that of a Gaussian process, in weight space."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from bayesmeta.inference.beliefs import FullGaussian
from bayesmeta.inference.conjugate import ConjugateGaussian
from bayesmeta.inference.evidence import checked
from bayesmeta.models.feature_regression import FeatureRegressionModel
from bayesmeta.types import Context


class ConjugateFeatures(nn.Module):
    """The posterior of :class:`FeatureRegressionModel`: :class:`ConjugateGaussian` on the features of the inputs."""

    def __init__(self, model: FeatureRegressionModel, *, x_dim: int) -> None:
        super().__init__()
        self.model, self.x_dim = model, x_dim
        self.weights = ConjugateGaussian(model.weights)

    def init(self, batch: int) -> FullGaussian:
        return self.weights.init(batch)

    def update(self, belief: FullGaussian, data: Context) -> FullGaussian:
        """The belief after also seeing ``data``. Raises ValueError on data of a wrong shape or not finite."""
        return self.weights.update(belief, self._features(belief, data))

    def scan(self, belief: FullGaussian, data: Context) -> FullGaussian:
        """The beliefs at every prefix, batch ``(N + 1) B``: row ``n B + b`` is task ``b`` after ``n`` rows."""
        return self.weights.scan(belief, self._features(belief, data))

    def predictive(self, belief: FullGaussian, x: Float[Tensor, "B N X"]) -> Distribution:
        """The Bayes-optimal predictive, that of the Gaussian process: batch ``[B, N]``, event ``[1]``."""
        return self.weights.predictive(belief, self.model.features(x))

    def _features(self, belief: FullGaussian, data: Context) -> Context:
        batch = len(belief.information)
        return self.model.featurised(checked("ConjugateFeatures", data, batch=batch, x_dim=self.x_dim, y_dim=1))
