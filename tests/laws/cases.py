"""The procedures that the laws are tested on. A new one joins by one line, and names the laws it does not obey.

NUTS, of which one update takes a minute, has tests of its own.
"""

import copy
from dataclasses import dataclass

import torch

from bayesmeta.inference.product import ProductOfGaussians
from bayesmeta.tasks.bernoulli_bandit import BernoulliBandit
from bayesmeta.tasks.finite_hypotheses import FiniteHypotheses
from bayesmeta.tasks.linear_gaussian import LinearGaussian
from bayesmeta.tasks.normal_normal import NormalNormal
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.tasks.tabular_transitions import TabularTransitions
from bayesmeta.tasks.unknown_noise import UnknownNoise
from bayesmeta.types import Inference, SupervisedFamily


@dataclass(frozen=True)
class Case:
    """A procedure on the data of a family; ``inference`` None is the family's own exact one.

    ``breaks`` are the laws it does not obey: the tests assert that it breaks them. Those in ``EXACT`` must also be
    calibrated, and one with the density of their family's model.
    """

    name: str
    family: SupervisedFamily
    inference: Inference | None = None
    breaks: frozenset[str] = frozenset()

    def double(self) -> Inference:
        """A copy of the procedure in float64, in which a law holds to round-off or not at all."""
        return copy.deepcopy(self.inference or self.family.exact).double()


def product(family: SupervisedFamily, **options: object) -> ProductOfGaussians:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ProductOfGaussians(family.spec.x_dim, family.spec.y_dim, 2, widths=(16,), **options)


LINEAR = LinearGaussian(dim=3)

EXACT = [
    Case("conjugate_linear", LinearGaussian(dim=3, prior_mean=0.5)),
    Case("conjugate_normal", NormalNormal(prior_mean=-1.0)),
    Case("conjugate_beta", BernoulliBandit(arms=3, alpha=2.0)),
    Case("grid", Sinusoid(noise=0.5, resolution=48)),
    Case("finite", FiniteHypotheses(noise=1.0)),
    Case("normal_inverse_gamma", UnknownNoise(dim=2, prior_mean=0.5)),
    Case("dirichlet", TabularTransitions(states=3, actions=1, concentration=2.0)),
]

LEARNED = [
    Case("product", LINEAR, product(LINEAR)),
    Case("product_full", LINEAR, product(LINEAR, covariance="full")),
    Case("product_published", LINEAR, product(LINEAR, prior_factor=False), breaks=frozenset({"bayes"})),
]
