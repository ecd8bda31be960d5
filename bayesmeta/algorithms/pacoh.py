r"""PACOH: priors over a network's weights, learned with a prior over priors (Rothfuss et al. 2021, PACOH-NN).

Generative reading: a prior ``xi = (mu, log sigma)`` is drawn from a hyperprior, the weights ``z`` of each task's
network from ``N(mu, diag sigma^2)``, and its data given them. The PAC-optimal hyper-posterior of ``n`` tasks with ``m``
data, at the paper's temperatures ``lambda = n`` and ``beta = m``, is

    Q(xi) ~ hyperprior(xi)^hyper_weight  exp( 1/(m + 1) sum_tasks log Z(task, xi) ),
    Z(task, xi) = E_{z ~ N(mu, sigma^2)} p(y | x, z),

of which SVGD moves ``priors`` particles, one step an update; a single one climbs to the mode (PACOH-MAP). ``log Z`` is
the log of the mean over ``draws`` of ``z``, a lower bound in expectation. The posterior of a new task is SVGD over
weights, under the mixture of the priors (:class:`~bayesmeta.models.prior_mixture.PriorMixtureModel`).

===========  ==========================================================================================
task model   network weights with a mixture of learned Gaussian priors
inference    Stein variational gradient descent, particles
explorer     -
policy       z is the weights
trained by   SVGD on the hyper-posterior: log evidence of all of a task's data, and the hyperprior
===========  ==========================================================================================

There is no adaptation in training, and support and queries are one data set. Differences from the published code, all
deliberate: the sum over tasks is ``tasks`` times the mean over a batch of them; the noise of numbers is one parameter
beside the priors, trained on the log evidence; targets are not standardised; the kernel's bandwidth is the median's.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Normal

from bayesmeta.episodic import Episodes, Learner
from bayesmeta.inference.descent import Adam, gradient, rates
from bayesmeta.inference.svgd import RBF, SVGD, Linear, stein_direction
from bayesmeta.models.architectures import Network
from bayesmeta.models.outputs import output_for
from bayesmeta.models.prior_mixture import PriorMixtureModel
from bayesmeta.types import Context, Spec, concat


class PACOH(Learner):
    """PACOH-NN on a supervised family. See the module's docstring for the objective.

    ``priors`` particles of the hyper-posterior; the hyperprior of each coordinate is ``mu ~ N(0, mean_scale^2)`` and
    ``log sigma ~ N(log scale, 1)``, to the power ``hyper_weight``, and ``scale`` is also where ``sigma`` starts.
    ``tasks`` is the number of training tasks that the hyper-posterior is about. A belief is ``particles`` weights after
    ``steps`` steps of Adam at ``rate`` along SVGD's direction. ``noise`` is the initial standard deviation of numbers
    around the network's output, in their units.
    """

    inference: SVGD

    def __init__(
        self,
        spec: Spec,
        *,
        device: torch.device | str = "cpu",
        network: Network | None = None,
        episodes: Episodes | None = None,
        tasks: int = 20,
        priors: int = 5,
        draws: int = 5,
        hyper_weight: float = 0.01,
        mean_scale: float = 1.0,
        scale: float = 0.1,
        particles: int = 10,
        steps: int = 100,
        rate: float = 0.01,
        kernel: Literal["rbf", "linear"] = "rbf",
        noise: float = 1.0,
        learn_noise: bool = True,
    ) -> None:
        net, output = network or Network(), output_for(spec, noise=noise, learn_noise=learn_noise)
        networks = [net.build(spec, output.width) for _ in range(priors)]
        mean = torch.stack([nn.utils.parameters_to_vector(one.parameters()).detach() for one in networks])
        start = torch.cat([mean, torch.full_like(mean, math.log(scale))], -1)
        inference = SVGD(
            PriorMixtureModel(networks[0], output, start),
            x_dim=spec.x_dim,
            y_dim=spec.y_dim,
            particles=particles,
            steps=steps,
            optimizer=Adam(rates(rate)),
            kernel=RBF() if kernel == "rbf" else Linear(),
            first_order=True,  # nothing is trained through a task's SVGD
        )
        self.tasks, self.draws, self.hyper_weight = tasks, draws, hyper_weight
        self.mean_scale, self.scale = mean_scale, scale
        super().__init__(inference, episodes or Episodes(), device)

    def loss(self, support: Context, query: Context) -> Float[Tensor, ""]:
        """Minus the mean log evidence of a task, averaged over the priors.

        Its gradient in the priors is not its own but minus SVGD's direction on the hyper-posterior, so that the
        optimiser's step is one of SVGD; in the noise it is its own.
        """
        data, xi = concat([support, query]), self.inference.model.priors
        noise = torch.randn(self.draws, len(xi), data.batch, xi.shape[1] // 2, dtype=xi.dtype, device=xi.device)
        score = gradient(lambda xi: self.log_hyper_posterior(xi, data, noise), xi, differentiable=False)
        direction = stein_direction(xi.detach().unsqueeze(0), score.unsqueeze(0), self.inference.kernel)[0]
        moved = (direction * xi).sum()
        return -self.log_evidence(xi.detach(), data, noise).mean() - (moved - moved.detach())

    def log_hyper_posterior(
        self, xi: Float[Tensor, "K M"], data: Context, noise: Float[Tensor, "L K B D"]
    ) -> Float[Tensor, "K"]:
        """``log Q`` of each prior, but for a constant, with the sum over tasks estimated from those of ``data``."""
        mean, log_scale = xi.chunk(2, -1)
        hyperprior = Normal(0.0, self.mean_scale).log_prob(mean) + Normal(math.log(self.scale), 1.0).log_prob(log_scale)
        evidence = self.log_evidence(xi, data, noise) / (data.mask.sum(1) + 1)
        return self.tasks * evidence.mean(1) + self.hyper_weight * hyperprior.sum(-1)

    def log_evidence(
        self, xi: Float[Tensor, "K M"], data: Context, noise: Float[Tensor, "L K B D"]
    ) -> Float[Tensor, "K B"]:
        """``log Z`` of each task under each prior, with ``noise`` standard normal."""
        mean, log_scale = xi.unsqueeze(1).chunk(2, -1)
        log_likelihood = self.inference.model.log_likelihood(mean + log_scale.exp() * noise, data)
        return log_likelihood.logsumexp(0) - math.log(len(noise))
