"""VERSA: an amortised posterior over a task's classifier (Gordon, Bronskill, Bauer, Nowozin and Turner 2019).

Generative reading: a task is a linear classifier ``z`` on features that all tasks share
(:class:`~bayesmeta.models.class_head.ClassHead`). The posterior is amortised, one class at a time
(:class:`~bayesmeta.inference.amortised_head.AmortisedHead`), and everything is trained to predict,

    L = - mean_tasks mean_queries log 1/draws sum_l p(y | x, z_l),   z_l ~ q(z | support),

which minimises the divergence of the predictive, not of the posterior: there is no KL to a prior, and ``q`` is whatever
predicts best.

===========  ==========================================================================================
task model   linear classifier on shared features
inference    amortised head, diagonal Gaussian
explorer     -
policy       -
trained by   predictive likelihood
===========  ==========================================================================================

For numbers the method is a latent from a mean of embeddings and a decoder with this loss, which is the neural process
with ``objective="predictive"``, and this class refuses them.

Differences from the paper and its code: classifiers are drawn, not logits (no local reparameterisation), so that a draw
is one classifier for all queries; accuracy here averages probabilities, where the code adds up exponentials of logits;
no dropout; whether queries are predicted together (transduction, in networks with batch normalisation) is a switch and
off, where the authors' code normalises queries among themselves.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.episodic import Episodes, Learner
from bayesmeta.inference.amortised_head import AmortisedHead
from bayesmeta.inference.predictive import log_predictive, per_datum
from bayesmeta.models.architectures import Network
from bayesmeta.models.class_head import ClassHead
from bayesmeta.types import Context, Spec


class VERSA(Learner):
    """VERSA on a supervised family of classes. See the module's docstring for the objective.

    ``network`` gives ``features`` numbers for an input; ``draws`` classifiers estimate the predictive in training.
    ``transductive`` matters to networks with batch normalisation: their statistics are then those of the queries
    together, else the support's. Raises ValueError for families of numbers.
    """

    inference: AmortisedHead

    def __init__(
        self,
        spec: Spec,
        *,
        device: torch.device | str = "cpu",
        network: Network | None = None,
        episodes: Episodes | None = None,
        features: int = 64,
        draws: int = 10,
        transductive: bool = False,
    ) -> None:
        if not spec.classes:
            raise ValueError(
                f"VERSA: expected a family of classes, got {spec.name}, whose targets are numbers; its method for them "
                f"is algorithm=neural_process with objective=predictive and aggregation=mean"
            )
        net = (network or Network()).build(spec, features)
        self.draws, self.transductive = draws, transductive
        inference = AmortisedHead(ClassHead(net, features, spec.y_dim), x_dim=spec.x_dim)
        super().__init__(inference, episodes or Episodes(), device)

    def loss(self, support: Context, query: Context) -> Float[Tensor, ""]:
        """Minus the mean log predictive probability of the queries."""
        posterior = self.inference.update(self.inference.init(support.batch), support).posterior
        given = None if self.transductive else support
        log_prob = log_predictive(self.inference.model, posterior, query, support=given, draws=self.draws)
        return -per_datum(log_prob, query).mean()
