"""The procedures that the laws are tested on. A new one joins by one line, and names the laws it does not obey.

NUTS, of which one update takes a minute, has tests of its own.
"""

import copy
from dataclasses import dataclass

import torch

from bayesmeta.inference.amortised_head import AmortisedHead
from bayesmeta.inference.descent import SGD
from bayesmeta.inference.gradient import GradientDescent
from bayesmeta.inference.laplace import Laplace
from bayesmeta.inference.linear_head import LinearHead
from bayesmeta.inference.product import ProductOfGaussians
from bayesmeta.inference.proximal import ProximalMAP
from bayesmeta.inference.set_encoder import MeanEncoder
from bayesmeta.inference.shifted import ShiftedStart
from bayesmeta.inference.svgd import SVGD
from bayesmeta.inference.variational import VariationalDescent
from bayesmeta.models.architectures import mlp
from bayesmeta.models.class_head import ClassHead
from bayesmeta.models.feature_head import FeatureHead
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.tasks.bernoulli_bandit import BernoulliBandit
from bayesmeta.tasks.circles import Circles
from bayesmeta.tasks.finite_hypotheses import FiniteHypotheses
from bayesmeta.tasks.gp_functions import GPFunctions
from bayesmeta.tasks.linear_gaussian import LinearGaussian
from bayesmeta.tasks.model_family import ModelFamily
from bayesmeta.tasks.normal_normal import NormalNormal
from bayesmeta.tasks.pacoh_sinusoid import PacohSinusoid
from bayesmeta.tasks.sine_or_line import SineOrLine
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


def mean_encoder(family: SupervisedFamily, **options: object) -> MeanEncoder:
    with torch_seeded(0):
        return MeanEncoder(family.spec.x_dim, family.spec.y_dim, 2, widths=(16,), **options)


def linear_head(family: SupervisedFamily) -> LinearHead:
    with torch_seeded(0):
        features = mlp(family.spec.x_dim, 4, (8,), activation="tanh")
    return LinearHead(FeatureHead(features, torch.ones(4, 1), torch.eye(4), 0.5), x_dim=family.spec.x_dim)


def classifiers() -> Case:
    """Two classes on data of a classifier of its own."""
    model = ClassHead(torch.nn.Identity(), 3, 2)
    family = ModelFamily(model, lambda tasks, shots, random: torch.randn(tasks, shots, 3, generator=random))
    with torch_seeded(0):
        inference = AmortisedHead(ClassHead(mlp(3, 4, (8,)), 4, 2), x_dim=3)
    return Case("amortised_head", family, inference, breaks=MEAN)


LINEAR = LinearGaussian(dim=3)
PROXIMAL = ProximalMAP(LINEAR.model, x_dim=3, y_dim=1, steps=50, optimizer=SGD(0.003))
FITTED = VariationalDescent(LINEAR.model, x_dim=3, y_dim=1, steps=8, draws="sigma", optimizer=SGD(0.005))
SHIFTED = ShiftedStart(GradientDescent(LINEAR.model, x_dim=3, y_dim=1, steps=3), particles=4)
STEIN = SVGD(LINEAR.model, x_dim=3, y_dim=1, steps=5, start=torch.eye(4, 3))
LAPLACE = Laplace(GradientDescent(LINEAR.model, x_dim=3, y_dim=1, steps=0, objective="joint"), newton=1)
MEAN = frozenset({"contraction", "bayes"})  # what is read off a mean does not know of how many data it is

EXACT = [
    Case("conjugate_linear", LinearGaussian(dim=3, prior_mean=0.5)),
    Case("conjugate_normal", NormalNormal(prior_mean=-1.0)),
    Case("conjugate_beta", BernoulliBandit(arms=3, alpha=2.0)),
    Case("grid", Sinusoid(noise=0.5, resolution=48)),
    Case("finite", FiniteHypotheses(noise=1.0)),
    Case("normal_inverse_gamma", UnknownNoise(dim=2, prior_mean=0.5)),
    Case("kinds", SineOrLine(noise=1.0, resolution=40)),
    Case("partly_linear", PacohSinusoid(train_tasks=None, resolution=24)),
    Case("features", GPFunctions(length=1.0, noise=0.3)),
    Case("cells", Circles(resolution=8)),
    Case("dirichlet", TabularTransitions(states=3, actions=1, concentration=2.0)),
]

LEARNED = [
    Case("product", LINEAR, product(LINEAR)),
    Case("product_full", LINEAR, product(LINEAR, covariance="full")),
    Case("product_published", LINEAR, product(LINEAR, prior_factor=False), breaks=frozenset({"bayes"})),
    Case("proximal", LINEAR, PROXIMAL, breaks=frozenset({"bayes"})),  # a point: it has no odds
    Case("variational", LINEAR, FITTED, breaks=frozenset({"bayes"})),  # few steps, no correlations
    Case("laplace", LINEAR, LAPLACE),  # exact, on a linear model
    Case("shifted_start", LINEAR, SHIFTED, breaks=frozenset({"bayes"})),  # points: they have no odds
    Case("svgd", LINEAR, STEIN, breaks=frozenset({"bayes"})),  # likewise
    Case("mean_encoder", LINEAR, mean_encoder(LINEAR), breaks=MEAN),
    Case("mean_encoder_point", LINEAR, mean_encoder(LINEAR, point=True), breaks=MEAN),
    Case("linear_head", LINEAR, linear_head(LINEAR)),
    classifiers(),
]
