r"""Neural processes: a latent inferred by a set encoder, and a decoder (Garnelo et al. 2018a, 2018b; Kim et al. 2019).

Generative reading: a task is a latent ``z ~ N(0, I)`` and a datum ``y ~ p(y | x, z)`` a decoder's
(:class:`~bayesmeta.models.decoder.Decoder`). The posterior is amortised: an encoder reads the context ``C`` and says
``q(z | C)``. Encoder and decoder are trained together on the targets ``T``, the context and further data, by either

    elbo         E_{q(z | T)} log p(T | z) - KL(q(z | T) || q(z | C)), as published,
    predictive   log E_{q(z | C)} p(T | z), its expectation over ``draws``, as in CNP and NPML (Foong et al. 2020),

per target. In the ELBO the posterior from fewer data stands for the prior: it bounds ``log p(T | C)`` only if ``q(z |
C)`` is right. ``predictive`` needs no such thing; it is what the belief is used for.

===========  ==========================================================================================
task model   neural decoder; attentive: with attention to the context beside the latent
inference    set encoder: mean of embeddings, or product of Gaussian factors with the prior
explorer     -
policy       -
trained by   predictive likelihood, or the ELBO of one Pyro program
===========  ==========================================================================================

The published methods: ``latent="point", objective="predictive"`` is the conditional neural process (CNP); the defaults
are the neural process (NP) with a latent path alone; ``attention=True`` adds the deterministic path of the attentive
neural process (ANP), which is no part of the latent: what a datum's neighbours say of it is predicted, not believed.
``aggregation="mean"`` cannot see how many data there are (:mod:`bayesmeta.inference.set_encoder`); ``"precision"``, a
product of learned Gaussian factors with the prior, can (Volpp et al. 2021).

Differences from the published code, all deliberate: the smallest noise that the decoder can say is ``least_noise =
1e-3`` where 0.1 is published, below which nothing would be calibrated; the belief without data is N(0, I), and contexts
may be empty; the decoder's share of ``z`` enters its first layer; sizes are for two cores. ``scored="query"`` leaves
the context's own data out of the likelihood.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

from bayesmeta.episodic import Episodes, Learner
from bayesmeta.inference.guides import elbo_loss, posterior_guide
from bayesmeta.inference.product import ProductOfGaussians
from bayesmeta.inference.set_encoder import Amortised, MeanEncoder
from bayesmeta.models.decoder import AttentiveDecoder, Decoder
from bayesmeta.models.network_model import inductive
from bayesmeta.models.outputs import ClassOutput, SpreadOutput
from bayesmeta.models.task_model import FactorModel
from bayesmeta.types import Context, Spec, concat


class NeuralProcess(Learner):
    """A neural process on a supervised family. See the module's docstring for the objectives and the methods.

    ``widths`` are those of encoder and decoder each, and the last of them that of attention with ``heads``; ``draws``
    of the latent estimate an expectation in training. Raises ValueError for a point latent with an objective or an
    aggregation that needs a distribution.
    """

    inference: Amortised

    def __init__(
        self,
        spec: Spec,
        *,
        device: torch.device | str = "cpu",
        episodes: Episodes | None = None,
        latent: Literal["gaussian", "point"] = "gaussian",
        latent_dim: int = 64,
        aggregation: Literal["mean", "precision"] = "mean",
        attention: bool = False,
        heads: int = 8,
        widths: Sequence[int] = (128, 128, 128),
        objective: Literal["elbo", "predictive"] = "elbo",
        draws: int = 1,
        scored: Literal["all", "query"] = "all",
        least_noise: float = 1e-3,
    ) -> None:
        if latent == "point" and (objective, aggregation) != ("predictive", "mean"):
            raise ValueError(
                f"NeuralProcess: expected objective = predictive and aggregation = mean for a latent that is a point, "
                f"got {objective} and {aggregation}; an ELBO and a product of Gaussians need latent = gaussian"
            )
        output = ClassOutput(spec.y_dim) if spec.classes else SpreadOutput(spec.y_dim, least=least_noise)
        sizes = (spec.x_dim, spec.y_dim, latent_dim)
        model: Decoder | AttentiveDecoder = (
            AttentiveDecoder(*sizes, output, widths=widths, width=widths[-1], heads=heads)
            if attention
            else Decoder(spec.x_dim, latent_dim, output, widths=widths)
        )
        encoder: nn.Module = (
            ProductOfGaussians(*sizes, widths=widths)
            if aggregation == "precision"
            else MeanEncoder(*sizes, widths=widths, point=latent == "point")
        )
        self.objective, self.scored, self.draws = objective, scored, 1 if latent == "point" else draws
        self._elbo = TraceMeanField_ELBO(num_particles=draws, vectorize_particles=True, max_plate_nesting=2)
        super().__init__(Amortised(model, encoder), episodes or Episodes(least_shots=0), device)

    def loss(self, support: Context, query: Context) -> Float[Tensor, ""]:
        """Minus the objective per target, of all tasks together."""
        belief = self.inference.update(self.inference.init(support.batch), support)
        targets = concat([support, query]) if self.scored == "all" else query
        model = inductive(self.inference.model, support)
        if self.objective == "predictive":
            z = belief.posterior.rsample(torch.Size((self.draws,)))
            log_prob = model.log_likelihood(z, targets).logsumexp(0) - math.log(self.draws)
            return -log_prob.sum() / targets.mask.sum()
        informed = self.inference.update(belief, query).posterior
        program = FactorModel(lambda _: belief.posterior, lambda z, _: model.log_likelihood(z, targets))

        def guide(*_: Any) -> Tensor:
            return posterior_guide(informed)

        return elbo_loss(self._elbo, program, guide, support.batch, None) / targets.mask.sum()
