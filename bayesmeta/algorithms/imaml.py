r"""iMAML: meta-learning through the posterior mode, with an implicit gradient (Rajeswaran et al. 2019).

Generative reading: a task is the weights ``z`` of a network with the prior ``N(theta, I / lambda)``, and adaptation is
the mode of the posterior, the minimum of ``-log p(support | z) + lambda / 2 |z - theta|^2``. Meta-training maximises
the likelihood of the query data there,

    L(theta) = - mean_tasks mean_queries log p(y | x, z*(theta; support)),

with the gradient ``(I + H / lambda)^{-1} grad`` of the implicit function theorem, which asks for the minimum but not
for the path to it: its memory does not grow with the inner steps.

===========  ==========================================================================================
task model   network weights, Gaussian prior
inference    mode of the posterior, point
explorer     -
policy       z is the weights
trained by   query likelihood, implicitly through the mode
===========  ==========================================================================================

Differences from the published code, all deliberate: the inner steps descend on the regularised loss throughout, as the
paper has it, where the code steps on the data's loss alone and pulls towards ``theta`` once at the end; they are
Newton's, which follow the noise as it is learned, where 16 steps at one rate diverge once it is small; the likelihood
sums over data, so that ``lambda`` is the prior's precision whatever their number (a published ``lambda`` beside a mean
over n data is ``n lambda`` here); tasks that meta-test adapts to have the same ``lambda``, where the code sets it to 0;
the noise of numbers and, with ``learn_scale``, the prior's width of every weight are learned by the same gradient; the
conjugate gradients are not damped by default.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.episodic import Episodes, Learner
from bayesmeta.inference.descent import SGD, Adam, Momentum, rates
from bayesmeta.inference.predictive import per_datum
from bayesmeta.inference.proximal import ProximalMAP
from bayesmeta.models.architectures import Network, head
from bayesmeta.models.network_model import NetworkModel
from bayesmeta.models.outputs import output_for
from bayesmeta.types import Context, Spec

_OPTIMIZERS = {"sgd": SGD, "momentum": Momentum, "adam": Adam}


class IMAML(Learner):
    """iMAML on a supervised family. See the module's docstring for the objective.

    ``scale`` is the prior's standard deviation of a weight, ``lambda = 1 / scale^2``. ``steps`` inner steps of
    ``inner`` on minus the log joint over the number of a task's data, whose minimum is that of the sum: ``"newton"``
    steps, or others at ``rate``; then ``cg_steps`` conjugate gradients with ``damping``
    (:class:`~bayesmeta.inference.proximal.ProximalMAP`, whose ``accuracy`` says whether both are enough). The other
    arguments are those of :class:`~bayesmeta.algorithms.maml.MAML`.

    Raises ValueError for ``episodes.compiled``.
    """

    inference: ProximalMAP

    def __init__(
        self,
        spec: Spec,
        *,
        device: torch.device | str = "cpu",
        network: Network | None = None,
        episodes: Episodes | None = None,
        scale: float = 0.1,
        learn_scale: bool = False,
        steps: int = 3,
        inner: Literal["newton", "sgd", "momentum", "adam"] = "newton",
        rate: float = 0.01,
        cg_steps: int = 5,
        damping: float = 0.0,
        adapt: Literal["all", "head"] = "all",
        noise: float = 1.0,
        learn_noise: bool = True,
        transductive: bool = False,
    ) -> None:
        if episodes is not None and episodes.compiled:
            raise ValueError("IMAML: expected episodes.compiled = false, as an implicit gradient cannot be compiled")
        output = output_for(spec, noise=noise, learn_noise=learn_noise)
        net = (network or Network()).build(spec, output.width)
        names = None if adapt == "all" else (head(net),)
        inference = ProximalMAP(
            NetworkModel(net, output, adapt=names, scale=scale, learn_scale=learn_scale),
            x_dim=spec.x_dim,
            y_dim=spec.y_dim,
            steps=steps,
            optimizer=None if inner == "newton" else _OPTIMIZERS[inner](rates(rate)),
            reduction="mean",
            cg_steps=cg_steps,
            damping=damping,
        )
        self.transductive = transductive
        super().__init__(inference, episodes or Episodes(), device)

    def loss(self, support: Context, query: Context) -> Float[Tensor, ""]:
        """Minus the mean log predictive density of the queries, implicitly through the mode."""
        log_prob = self.inference.log_predictive(support, query, transductive=self.transductive)
        return -per_datum(log_prob, query).mean()
