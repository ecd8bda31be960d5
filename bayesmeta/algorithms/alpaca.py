r"""ALPaCA: exact Bayesian regression on learned features (Harrison, Sharma and Pavone 2018).

Generative reading: a task is the last layer ``K`` of a network, matrix normal under a learned prior, and targets are
Gaussian (:class:`~bayesmeta.models.feature_head.FeatureHead`). Its posterior and its predictive are exact and in closed
form (:class:`~bayesmeta.inference.linear_head.LinearHead`), so that adaptation has nothing to learn; what is learned is
the model, features, prior and noise, by the predictive it makes,

    L = - mean_tasks mean_queries log p(y | x, support),

with a number of support data that differs from update to update, from none on.

===========  ==========================================================================================
task model   linear-Gaussian last layer on learned features
inference    exact, in natural parameters
explorer     -
policy       -
trained by   predictive likelihood
===========  ==========================================================================================

Differences from the published code: the prior's precision is learned by its Cholesky factor, and starts with weights of
standard deviation ``scale`` and mean zero; the noise may be learned, with ``learn_noise``, and is known otherwise, as
published; each query counts by itself, as published, so that ``p`` is no joint density of the queries.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesmeta.episodic import Episodes, Learner
from bayesmeta.inference.linear_head import LinearHead
from bayesmeta.inference.predictive import per_datum
from bayesmeta.models.architectures import Network
from bayesmeta.models.batch_norm import BatchNorm
from bayesmeta.models.feature_head import FeatureHead
from bayesmeta.types import Context, Spec


class ALPaCA(Learner):
    """ALPaCA on a supervised family of numbers. See the module's docstring for the objective.

    ``network`` ends in ``features`` numbers, each through a tanh. ``noise`` is the standard deviation of targets around
    the function, in their units, from which ``learn_noise`` sets out; ``scale`` that of a weight of the last layer
    before training. Raises ValueError for families of classes and for networks that normalise over rows.
    """

    inference: LinearHead

    def __init__(
        self,
        spec: Spec,
        *,
        device: torch.device | str = "cpu",
        network: Network | None = None,
        episodes: Episodes | None = None,
        features: int = 32,
        noise: float = 1.0,
        learn_noise: bool = True,
        scale: float = 1.0,
    ) -> None:
        if spec.classes:
            raise ValueError(
                f"ALPaCA: expected a family of numbers, got {spec.name}, whose targets are classes and have no exact "
                f"posterior; algorithm=versa has an amortised one"
            )
        net = (network or Network(widths=(128, 128), activation="tanh")).build(spec, features)
        if any(isinstance(module, BatchNorm) for module in net.modules()):
            raise ValueError(
                "ALPaCA: expected features of one datum that do not depend on the others, got a network that "
                "normalises over rows; use network.kind=mlp and network.norm=false"
            )
        if not scale > 0:
            raise ValueError(f"ALPaCA: scale is a standard deviation, expected > 0, got {scale}")
        mean, precision = torch.zeros(features, spec.y_dim), (noise / scale) ** 2 * torch.eye(features)
        model = FeatureHead(nn.Sequential(net, nn.Tanh()), mean, precision, noise, learn_noise=learn_noise)
        super().__init__(LinearHead(model, x_dim=spec.x_dim), episodes or Episodes(least_shots=0), device)

    def loss(self, support: Context, query: Context) -> Float[Tensor, ""]:
        """Minus the mean log predictive density of the queries, in closed form."""
        belief = self.inference.update(self.inference.init(support.batch), support)
        log_prob = self.inference.predictive(belief, query.x).log_prob(query.y)
        return -per_datum(log_prob, query).mean()
