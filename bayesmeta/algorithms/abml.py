r"""ABML: amortised Bayesian meta-learning, variational inference from a learned prior (Ravi and Beatson 2019).

Generative reading: a task is the weights ``z`` of a network, ``z ~ N(mu, diag sigma^2)`` with a learned mean and scale
for each weight. Adaptation is ``steps`` steps of Bayes by backprop on the support from the prior, which gives a
diagonal Gaussian ``q`` (:class:`~bayesmeta.inference.variational.VariationalDescent`). Meta-training descends on minus
the ELBO of all data of a task,

    L(mu, sigma) = - mean_tasks [ E_q log p(S, Q | z) - kl_weight KL(q || p(z | mu, sigma)) ]
                   - log p(mu, sigma) / tasks,

one ELBO of one Pyro program, a bound on the evidence with ``kl_weight = 1``, with the gradient through all steps.

===========  ==========================================================================================
task model   network weights with a learned Gaussian prior
inference    gradient descent on an ELBO, diagonal Gaussian
explorer     -
policy       z is the weights
trained by   ELBO through the update
===========  ==========================================================================================

``kl_weight`` counts the prior against data that are summed: 1 is Bayes' rule. Re-implementations use 1e-6 to 0.1 beside
a mean over data, which gives posteriors that are far too narrow and are tuned on accuracy; here such a choice is open.
Since ``q`` has seen the support only and is scored on the queries too, the bound is not tight even where the posterior
is diagonal, and it rewards narrow beliefs: ``sigma`` comes out below the generator's, the less so the larger the
support (``tests/algorithms/test_abml.py`` has the optimum in closed form).

Differences from the paper, all deliberate: inner steps are ``whitened``, taken in units of the prior, because plain
ones diverge at rates above ``2 sigma^2 / kl_weight``, which is 7e-4 at its ``sigma`` of exp(-4); each step's rate is
learned, because the likelihood becomes steeper as the noise falls; ``sigma`` starts larger, as the KL term at its full
weight forbids any adaptation within exp(-4); weights are drawn for each task and not for each datum (no local
reparameterisation or flipout), so that draws are functions and any module is served; the prior's mean starts as torch's
layers do; the noise of numbers is a parameter of the model (:class:`~bayesmeta.models.outputs.GaussianOutput`); without
``hyperprior.tasks`` there is no hyperprior, as fits an endless stream of tasks.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import Gamma, Normal

from bayesmeta.episodic import Episodes, Learner
from bayesmeta.inference.descent import SGD, rates
from bayesmeta.inference.guides import elbo_loss, posterior_guide
from bayesmeta.inference.variational import VariationalDescent
from bayesmeta.models.architectures import Network
from bayesmeta.models.network_model import NetworkModel, inductive
from bayesmeta.models.outputs import output_for
from bayesmeta.models.task_model import FactorModel
from bayesmeta.types import Context, Spec


@dataclass(frozen=True)
class Hyperprior:
    """``mu ~ N(0, scale^2)`` and ``1 / sigma^2 ~ Gamma(shape, rate)`` of each weight, counted once in ``tasks`` tasks.

    The densities are those of ``mu`` and of the precision. ``tasks`` is the number of training tasks; None is an
    endless stream, whose evidence outweighs any hyperprior.
    """

    tasks: int | None = None
    scale: float = 1.0
    shape: float = 2.0
    rate: float = 0.2

    def log_prob(self, mean: Float[Tensor, "D"], log_scale: Float[Tensor, "D"]) -> Float[Tensor, ""]:
        """The log density of all weights' ``mu`` and ``sigma = exp(log_scale)``."""
        like = mean.new_ones(())
        precision = Gamma(self.shape * like, self.rate * like).log_prob((-2 * log_scale).exp())
        return (Normal(0 * like, self.scale * like).log_prob(mean) + precision).sum()


class ABML(Learner):
    """Amortised Bayesian meta-learning on a supervised family. See the module's docstring for the objective.

    ``steps`` inner steps at ``rate``, of the standard deviations at ``scale_rate`` times that, on the ELBO of the sum
    over the support (:class:`~bayesmeta.inference.variational.VariationalDescent`). ``scale`` > 0 is the prior's
    standard deviation at the start. ``draws`` weights estimate each expectation in training, in pairs ``mean +- e`` in
    the inner loop with ``antithetic``, and ``evaluation_draws`` those of the inner loop at meta-test. ``noise`` is the
    initial standard deviation of numbers around the network's output, in their units. ``transductive`` matters to
    networks with batch normalisation: their statistics are then those of the queries together, else the support's.

    Raises ValueError for ``episodes.compiled``: torch.compile cannot trace Pyro's ELBO.
    """

    inference: VariationalDescent

    def __init__(
        self,
        spec: Spec,
        *,
        device: torch.device | str = "cpu",
        network: Network | None = None,
        episodes: Episodes | None = None,
        steps: int = 5,
        rate: float = 0.3,
        learn_rate: Literal["no", "one", "step", "parameter"] = "step",
        scale_rate: float = 0.1,
        whitened: bool = True,
        first_order: bool = False,
        scale: float = 0.05,
        kl_weight: float = 1.0,
        hyperprior: Hyperprior | None = None,
        draws: int = 4,
        antithetic: bool = True,
        evaluation_draws: int = 10,
        noise: float = 1.0,
        learn_noise: bool = True,
        transductive: bool = False,
        checkpointed: bool = False,
    ) -> None:
        episodes = episodes or Episodes()
        if episodes.compiled:
            raise ValueError("ABML: expected episodes.compiled=false, since torch.compile cannot trace Pyro's ELBO")
        output = output_for(spec, noise=noise, learn_noise=learn_noise)
        net = (network or Network()).build(spec, output.width)
        model = NetworkModel(net, output, scale=scale, learn_scale=True)
        shapes = {"no": (), "one": (), "step": (steps, 1), "parameter": (2 * sum(model.sizes),)}
        inference = VariationalDescent(
            model,
            x_dim=spec.x_dim,
            y_dim=spec.y_dim,
            steps=steps,
            optimizer=SGD(rates(rate, per=shapes[learn_rate]), learn=learn_rate != "no"),
            draws=evaluation_draws,
            antithetic=antithetic,
            whitened=whitened,
            scale_rate=scale_rate,
            kl_weight=kl_weight,
            first_order=first_order,
            checkpointed=checkpointed,
        )
        self.training_inference = inference.at(draws=draws)
        self.hyperprior, self.transductive = hyperprior or Hyperprior(), transductive
        self._elbo = TraceMeanField_ELBO(num_particles=draws, vectorize_particles=True, max_plate_nesting=2)
        super().__init__(inference, episodes, device)

    def loss(self, support: Context, query: Context) -> Float[Tensor, ""]:
        """Minus the mean ELBO of a task, through the adaptation, and its share of the log hyperprior."""
        adaptation = self.training_inference
        model: Any = adaptation.model
        posterior = adaptation.update(adaptation.init(support.batch), support).posterior
        queries = model if self.transductive else inductive(model, support)

        def log_likelihood(z: Tensor, _: Any) -> Tensor:
            return model.log_likelihood(z, support) + queries.log_likelihood(z, query)

        def guide(*_: Any) -> Tensor:
            return posterior_guide(posterior, adaptation.kl_weight)

        program = FactorModel(model.prior, log_likelihood, adaptation.kl_weight)
        loss = elbo_loss(self._elbo, program, guide, support.batch, None) / support.batch
        if self.hyperprior.tasks is None:
            return loss
        return loss - self.hyperprior.log_prob(model.mean, model.log_scale) / self.hyperprior.tasks
