"""MAML: few steps of gradient descent from a learned start (Finn, Abbeel and Levine 2017), and its near relatives.

Generative reading: a task is the weights ``z`` of a network, ``z ~ p(z | theta)``, and adaptation replaces the
posterior by the point that ``steps`` gradient steps reach from ``theta``, the posterior mode under an implicit prior
(Grant et al. 2018). Meta-training maximises the likelihood of the query data at that point,

    L(theta) = - mean_tasks mean_queries log p(y | x, z_k(theta; support)),

an approximation to the marginal likelihood of a hierarchical model, with the gradient through all steps.

===========  ==========================================================================================
task model   network weights, implicit prior
inference    gradient descent, point
explorer     -
policy       z is the weights
trained by   query likelihood through the update
===========  ==========================================================================================

The relatives are options: ``first_order`` (FOMAML), ``learn_rate="parameter"`` (Meta-SGD, Li et al. 2017), ``"step"``
(one learned rate per step, after MAML++, Antoniou et al. 2019), ``adapt="head"`` (ANIL, Raghu et al. 2020).

Differences from the published code, all deliberate: the noise of numbers is learned beside the network, so that the
predictive says how wrong it expects to be (where it is learned the inner loss is the squared error, as published, which
does not depend on it); weights start as torch's layers do; only the last step's query loss is optimised, as published;
whether queries are predicted together (transduction) is a switch and off, where the authors' code has no choice.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.episodic import Episodes, Learner
from bayesmeta.inference.descent import SGD, rates
from bayesmeta.inference.gradient import GradientDescent, Objective, Reduction
from bayesmeta.inference.predictive import per_datum
from bayesmeta.models.architectures import Network, head
from bayesmeta.models.network_model import NetworkModel
from bayesmeta.models.outputs import output_for
from bayesmeta.types import Context, Spec


class MAML(Learner):
    """MAML on a supervised family. See the module's docstring for the objective.

    ``steps`` inner steps at ``rate`` on the inner loss ``objective`` with ``reduction``
    (:class:`~bayesmeta.inference.gradient.GradientDescent`); by default the mean squared error for numbers and the mean
    negative log-likelihood for classes, as published. ``adapt`` is ``"all"`` parameters or the ``"head"``. ``noise`` is
    the initial standard deviation of numbers around the network's output, in their units. ``transductive`` matters to
    networks with batch normalisation: their statistics are then those of the queries together, else the support's.
    """

    inference: GradientDescent

    def __init__(
        self,
        spec: Spec,
        *,
        device: torch.device | str = "cpu",
        network: Network | None = None,
        episodes: Episodes | None = None,
        steps: int = 1,
        rate: float = 0.01,
        learn_rate: Literal["no", "one", "step", "parameter"] = "no",
        first_order: bool = False,
        adapt: Literal["all", "head"] = "all",
        objective: Objective | None = None,
        reduction: Reduction = "mean",
        noise: float = 1.0,
        learn_noise: bool = True,
        transductive: bool = False,
        checkpointed: bool = False,
    ) -> None:
        output = output_for(spec, noise=noise, learn_noise=learn_noise)
        net = (network or Network()).build(spec, output.width)
        model = NetworkModel(net, output, adapt=None if adapt == "all" else (head(net),))
        shapes = {"no": (), "one": (), "step": (steps, 1), "parameter": (sum(model.sizes),)}
        inference = GradientDescent(
            model,
            x_dim=spec.x_dim,
            y_dim=spec.y_dim,
            steps=steps,
            optimizer=SGD(rates(rate, per=shapes[learn_rate]), learn=learn_rate != "no"),
            objective=objective or ("nll" if spec.classes else "squared_error"),
            reduction=reduction,
            first_order=first_order,
            checkpointed=checkpointed,
        )
        self.transductive = transductive
        super().__init__(inference, episodes or Episodes(), device)

    def loss(self, support: Context, query: Context) -> Float[Tensor, ""]:
        """Minus the mean log predictive density of the queries, through the adaptation."""
        log_prob = self.inference.log_predictive(support, query, transductive=self.transductive)
        return -per_datum(log_prob, query).mean()
