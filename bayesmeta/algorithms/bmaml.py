"""BMAML: particles of a network's weights that are moved together by few SVGD steps (Yoon et al. 2018).

Generative reading: a task is the weights ``w`` of a network and two precisions, of the noise and of the weights,

    gamma ~ Gamma,   lambda ~ Gamma,   w ~ N(0, 1/lambda),   y ~ N(f_w(x), 1/gamma),

and its posterior is approximated by ``M`` particles of ``z = (w, log gamma, log lambda)`` after ``steps`` steps of
Stein variational gradient descent on ``log p(z | support)``. What is learned is where the particles start, ``M``
networks of their own. Of classes a task is the weights alone, ``w ~ N(0, prior_scale^2)``. Two losses train the start:

- ``chaser``: the support's particles (follower) go on for ``leader_steps`` on support and queries together (leader),
  and ``sum_m |w_m^follower - stop(w_m^leader)|^2`` pulls them after. The precisions take no part in the distance, so
  that no loss fits the noise: it stays about where it starts, and so does the trust in the data against the prior.
- ``emaml``: ``- log 1/M sum_m p(queries | z_m)`` of the support's particles. It fits the noise, from a start with much
  of it (``noise=1.0, rate=0.01``): where the noise is far too small a step in ``log gamma`` overshoots. As the queries
  are taken together, one particle that explains all of a task's is enough: particles become experts of some tasks each.
- ``mixture``: ``- sum_i log 1/M sum_m p(query_i | z_m)``, the predictive density of each query by itself, which is what
  predictions are scored by. It is not published.

===========  ==========================================================================================
task model   network weights with precisions of their own, or a fixed Gaussian prior
inference    Stein variational gradient descent, particles
explorer     -
policy       z is the weights
trained by   chaser or predictive likelihood, through the update
===========  ==========================================================================================

Differences from the published code, all deliberate: the particles' repulsion is the full gradient of the kernel, of
which the code has half; with one particle the kernel's bandwidth is not 0 / 0 but unused, and the method is gradient
descent on the log joint density; weights start as torch's layers do; task batch, rates and network are the yaml's, not
the paper's. The spread of few particles of many weights is far below the posterior's
(:mod:`bayesmeta.inference.svgd`): it is no measure of what the task leaves open.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayesmeta.episodic import Episodes, Learner
from bayesmeta.inference.descent import SGD, rates
from bayesmeta.inference.particles import log_densities, log_mixture
from bayesmeta.inference.svgd import RBF, SVGD, Linear
from bayesmeta.models.architectures import Network
from bayesmeta.models.network_model import NetworkModel
from bayesmeta.models.noisy_network import NoisyNetworkModel
from bayesmeta.models.outputs import output_for
from bayesmeta.types import Context, Spec, concat


class BMAML(Learner):
    """BMAML on a supervised family. See the module's docstring for the losses.

    ``particles`` networks move ``steps`` steps at ``rate`` on the log joint density, summed over the data, with the
    ``kernel``. ``precisions`` are ``"latent"``, part of the task, or ``"fixed"``: the noise then is ``noise`` and the
    weights' prior has the standard deviation ``prior_scale`` around 0. None: latent for numbers, fixed for classes,
    which cannot have them latent (ValueError). ``noise``, a standard deviation in units of the targets, is also where
    latent noise starts. ``first_order`` holds the inner directions constant. ``transductive`` matters to networks with
    batch normalisation and to the losses of the queries: their statistics are then those of the queries together.
    """

    inference: SVGD

    def __init__(
        self,
        spec: Spec,
        *,
        device: torch.device | str = "cpu",
        network: Network | None = None,
        episodes: Episodes | None = None,
        particles: int = 10,
        steps: int = 1,
        rate: float = 1e-3,
        loss: Literal["chaser", "emaml", "mixture"] = "chaser",
        leader_steps: int = 1,
        precisions: Literal["latent", "fixed"] | None = None,
        noise: float = 0.1,
        prior_scale: float = 1.0,
        kernel: Literal["rbf", "linear"] = "rbf",
        first_order: bool = False,
        transductive: bool = False,
    ) -> None:
        latent = precisions == "latent" or (precisions is None and not spec.classes)
        if latent and spec.classes:
            raise ValueError(
                f"BMAML: expected precisions = fixed for classes, whose likelihood has no noise to infer, got "
                f"{precisions} on {spec.name}"
            )
        net, output = network or Network(), output_for(spec, noise=noise)
        networks = [net.build(spec, output.width) for _ in range(particles)]
        start = torch.stack([nn.utils.parameters_to_vector(one.parameters()).detach() for one in networks])
        model: NoisyNetworkModel | NetworkModel
        if latent:
            model = NoisyNetworkModel(networks[0], spec.y_dim)
            precision = start.new_tensor([-2.0 * math.log(noise), 0.0])
            start = torch.cat([start, precision.expand(particles, -1)], -1)
        else:
            model = NetworkModel(_zero(networks[0]), output, scale=prior_scale)
        self.weights = model.weights if isinstance(model, NoisyNetworkModel) else start.shape[-1]
        self.kind, self.leader_steps, self.transductive = loss, leader_steps, transductive
        inference = SVGD(
            model,
            x_dim=spec.x_dim,
            y_dim=spec.y_dim,
            steps=steps,
            optimizer=SGD(rates(rate)),
            kernel=RBF() if kernel == "rbf" else Linear(),
            start=start,
            first_order=first_order,
        )
        super().__init__(inference, episodes or Episodes(), device)

    def loss(self, support: Context, query: Context) -> Float[Tensor, ""]:
        """The chaser's distance, or minus the log of the particles' mean likelihood of all or each query, per task."""
        follower = self.inference.update(self.inference.init(support.batch), support).z
        if self.kind != "chaser":
            statistics = None if self.transductive else support
            each = log_densities(self.inference.model, follower, query, support=statistics)
            return -(log_mixture(each.sum(-1)) if self.kind == "emaml" else log_mixture(each).sum(-1)).mean()
        with torch.no_grad():
            leader = self.inference.moved(follower, concat([support, query]), self.leader_steps)
        return (follower - leader)[..., : self.weights].square().sum((1, 2)).mean()


def _zero(network: nn.Module) -> nn.Module:
    """The network as the mean of a prior around 0, which is not learned."""
    for parameter in network.requires_grad_(False).parameters():
        parameter.zero_()
    return network
