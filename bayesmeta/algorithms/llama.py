r"""LLAMA: MAML with the curvature at the adapted weights, by Laplace's method (Grant et al. 2018, section 4).

Generative reading: a task is the weights ``z ~ N(theta, scale^2 I)`` of a network, and empirical Bayes maximises the
evidence of hierarchical data in ``theta``. MAML puts the integral over ``z`` at the point ``z_k`` that descent on the
support reaches; Laplace's method adds the volume around it. ``outer="queries"`` is the paper's loss (subroutine 4),

    L(theta) = mean_tasks [ - log p(Q | z_k) + eta log det P(z_k; Q) ] / queries,

where ``P`` is the Fisher information of the queries at ``z_k`` plus the prior's precision, and the gradient flows
through ``z_k`` in both terms. 1/2 is the coefficient of Laplace's method; the paper's is 1e-6, found by
cross-validation on miniImageNet. ``outer="evidence"`` is the textbook's approximation on all data ``D`` of a task,

    L(theta) = - mean_tasks [ log p(D | z_k) + log p(z_k | theta) + d/2 log 2 pi - 1/2 log det P(z_k; D) ] / data,

which counts the way from the prior too, so that the prior's scale and the noise can be learned from it.

===========  ==========================================================================================
task model   network weights with a Gaussian prior
inference    gradient descent, Gaussian by Laplace's method
explorer     -
policy       z is the weights
trained by   query likelihood and curvature through the update, or Laplace's evidence
===========  ==========================================================================================

Differences from the paper, all deliberate: the curvature includes the prior's precision, without which its determinant
is 0 wherever a task has fewer data than weights; by default it is the exact Fisher information in its low-rank form
instead of KFAC, which ``curvature="kfac"`` gives; terms are divided by the number of queries together, so that ``eta``
does not depend on it and rates are MAML's. The rest is as in :mod:`~bayesmeta.algorithms.maml`.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.episodic import Episodes, Learner
from bayesmeta.inference.descent import SGD, rates
from bayesmeta.inference.gradient import GradientDescent, Objective, Reduction
from bayesmeta.inference.laplace import CurvatureKind, Laplace
from bayesmeta.models.architectures import Network
from bayesmeta.models.network_model import NetworkModel, inductive
from bayesmeta.models.outputs import output_for
from bayesmeta.types import Context, Spec, concat


class LLAMA(Learner):
    """Laplace's method on a supervised family. See the module's docstring for the two losses.

    ``steps`` inner steps at ``rate`` on the inner loss ``objective`` with ``reduction``, by default MAML's with
    ``outer="queries"`` and minus the joint density, whose minimum is the posterior mode, with ``"evidence"``.
    ``curvature`` is that of :class:`~bayesmeta.inference.laplace.Laplace`, at meta-test too. ``scale`` > 0 is the
    prior's standard deviation, with ``learn_scale`` where it starts, for each weight; the queries' loss has no minimum
    in it. ``noise`` is the initial standard deviation of numbers around the network's output, in their units.

    Raises ValueError for ``learn_scale`` without ``outer="evidence"``.
    """

    inference: Laplace

    def __init__(
        self,
        spec: Spec,
        *,
        device: torch.device | str = "cpu",
        network: Network | None = None,
        episodes: Episodes | None = None,
        outer: Literal["queries", "evidence"] = "queries",
        eta: float = 1e-6,
        curvature: CurvatureKind = "fisher",
        scale: float = 0.1,
        learn_scale: bool = False,
        steps: int = 1,
        rate: float = 0.01,
        learn_rate: Literal["no", "one", "step", "parameter"] = "no",
        first_order: bool = False,
        objective: Objective | None = None,
        reduction: Reduction = "mean",
        noise: float = 1.0,
        learn_noise: bool = True,
        transductive: bool = False,
    ) -> None:
        if learn_scale and outer != "evidence":
            raise ValueError(
                f"LLAMA: learn_scale needs outer=evidence, got outer={outer}: the determinant alone falls without end "
                f"as the scale grows"
            )
        episodes = episodes or Episodes()
        if episodes.compiled:
            raise ValueError("LLAMA: expected episodes.compiled=false, since torch.compile cannot trace the curvature")
        output = output_for(spec, noise=noise, learn_noise=learn_noise)
        net = (network or Network()).build(spec, output.width)
        model = NetworkModel(net, output, scale=scale, learn_scale=learn_scale)
        shapes = {"no": (), "one": (), "step": (steps, 1), "parameter": (sum(model.sizes),)}
        published: Objective = "nll" if spec.classes else "squared_error"
        descent = GradientDescent(
            model,
            x_dim=spec.x_dim,
            y_dim=spec.y_dim,
            steps=steps,
            optimizer=SGD(rates(rate, per=shapes[learn_rate]), learn=learn_rate != "no"),
            objective=objective or (published if outer == "queries" else "joint"),
            reduction=reduction,
            first_order=first_order,
        )
        self.outer, self.eta, self.transductive = outer, eta, transductive
        super().__init__(Laplace(descent, curvature=curvature), episodes, device)

    def loss(self, support: Context, query: Context) -> Float[Tensor, ""]:
        """The loss of the module's docstring, in nats per datum."""
        laplace = self.inference
        if self.outer == "evidence":
            data = concat([support, query])
            evidence = laplace.log_evidence(laplace.update(laplace.init(data.batch), data))
            return -(evidence / data.mask.sum(1).clamp_min(1)).mean()
        model = laplace.model if self.transductive else inductive(laplace.model, support)
        z = laplace.mode.update(laplace.mode.init(support.batch), support).z
        volume = laplace.curvature_at(z, query, model=model).log_det()
        loss = self.eta * volume - model.log_likelihood(z, query)
        return (loss / query.mask.sum(1).clamp_min(1)).mean()
