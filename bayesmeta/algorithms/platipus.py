"""PLATIPUS, probabilistic MAML: a noisy start, then gradient descent (Finn, Xu and Levine 2018).

Generative reading: a task is the weights ``z`` of a network that ``steps`` gradient steps on the support reach from a
start ``theta ~ N(mu, sigma^2)``; given the support the start's mean moves by one gradient of its own,
``p(theta | support) = N(mu - gamma_p grad l(mu; support), sigma^2)``. Meta-training maximises an ELBO with a
variational posterior that has seen the queries, ``q(theta | query) = N(mu - gamma_q grad l(mu; query), v)``,

    L = - E_q[ sum_queries log p(y | x, z(theta; support)) ] + kl_weight KL( q(theta | query) || p(theta | support) ),

with gradients through descent, both shifts and both Gaussians into ``mu, sigma, v, gamma_p, gamma_q``.

===========  ==========================================================================================
task model   network weights, learned Gaussian start, one scale for each weight
inference    shifted start with noise, gradient descent from it, draws
explorer     -
policy       z is the weights
trained by   ELBO through shift and descent
===========  ==========================================================================================

Differences from the paper, all deliberate: the noise of numbers is learned beside the network; the ELBO is the sum over
queries, so that ``kl_weight`` = 1 is a bound. The draws' covariance is the noise's after descent, not the posterior's
(:mod:`bayesmeta.inference.shifted`): the ELBO alone makes it useful, for the shots and steps of training.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import kl_divergence

from bayesmeta.episodic import Episodes, Learner
from bayesmeta.inference.descent import SGD, rates
from bayesmeta.inference.gradient import GradientDescent, Objective, Reduction
from bayesmeta.inference.particles import log_densities
from bayesmeta.inference.shifted import ShiftedStart
from bayesmeta.models.architectures import Network
from bayesmeta.models.network_model import NetworkModel
from bayesmeta.models.outputs import output_for
from bayesmeta.types import Context, Spec


class PLATIPUS(Learner):
    """PLATIPUS on a supervised family. See the module's docstring for the objective.

    ``steps`` inner steps at ``rate`` on the inner loss ``objective`` with ``reduction``, which the shifts use too
    (:class:`~bayesmeta.inference.gradient.GradientDescent`); by default the mean squared error for numbers and the mean
    negative log-likelihood for classes. ``shift_rate`` is the first value of ``gamma_p`` and ``gamma_q``,
    ``start_scale`` that of ``sigma`` and of the square root of ``v``. ``draws`` of ``q`` estimate the ELBO; a belief is
    ``particles`` draws. ``noise`` is the initial standard deviation of numbers around the network's output, in their
    units. ``transductive`` matters to networks with batch normalisation: their statistics are then those of the queries
    together, else the support's.
    """

    inference: ShiftedStart

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
        shift_rate: float = 0.01,
        start_scale: float = 0.02,
        kl_weight: float = 1.0,
        draws: int = 1,
        particles: int = 20,
        first_order: bool = False,
        objective: Objective | None = None,
        reduction: Reduction = "mean",
        noise: float = 1.0,
        learn_noise: bool = True,
        transductive: bool = False,
    ) -> None:
        output = output_for(spec, noise=noise, learn_noise=learn_noise)
        net = (network or Network()).build(spec, output.width)
        model = NetworkModel(net, output, scale=start_scale, learn_scale=True)
        shapes = {"no": (), "one": (), "step": (steps, 1), "parameter": (sum(model.sizes),)}
        descent = GradientDescent(
            model,
            x_dim=spec.x_dim,
            y_dim=spec.y_dim,
            steps=steps,
            optimizer=SGD(rates(rate, per=shapes[learn_rate]), learn=learn_rate != "no"),
            objective=objective or ("nll" if spec.classes else "squared_error"),
            reduction=reduction,
            first_order=first_order,
        )
        inference = ShiftedStart(
            descent, particles=particles, rate=shift_rate, proposal_rate=shift_rate, proposal_scale=start_scale
        )
        self.kl_weight, self.draws, self.transductive = kl_weight, draws, transductive
        super().__init__(inference, episodes or Episodes(), device)

    def loss(self, support: Context, query: Context) -> Float[Tensor, ""]:
        """Minus the ELBO of the queries, with the KL term weighted, per task."""
        inference = self.inference
        proposal = inference.proposal(query)
        theta = proposal.rsample(torch.Size((self.draws,))).transpose(0, 1)
        z = inference.descended(theta, support)
        statistics = None if self.transductive else support
        likelihood = log_densities(inference.model, z, query, support=statistics).sum(-1).mean(0)
        return (self.kl_weight * kl_divergence(proposal, inference.start(support)) - likelihood).mean()
