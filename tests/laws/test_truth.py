"""A family's model, its Pyro program and its exact posterior are one: density, evidence lower bounds, predictions."""

import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from scipy import stats
from torch import Tensor
from torch.distributions import MultivariateNormal

from bayesmeta.inference.guides import guide, posterior_guide
from bayesmeta.models.task_model import TaskModel
from bayesmeta.tasks.bernoulli_bandit import BernoulliBandit
from bayesmeta.tasks.circles import Circles
from bayesmeta.tasks.gp_functions import GPFunctions
from bayesmeta.tasks.linear_gaussian import LinearGaussian
from bayesmeta.tasks.pacoh_sinusoid import PacohSinusoid
from bayesmeta.tasks.sine_or_line import SineOrLine
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.tasks.tabular_transitions import TabularTransitions
from bayesmeta.tasks.unknown_noise import UnknownNoise
from bayesmeta.types import Context
from tests.laws.cases import EXACT, Case

BATCH, SHOTS = 4, 5

each_exact = pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)


# Those with a predictive in closed form and reparameterised draws: all but the finitely many hypotheses and the grids.
WEIGHTED = ("finite", "grid", "kinds", "partly_linear", "cells")
each_conjugate = pytest.mark.parametrize(
    "case", [case for case in EXACT if case.name not in WEIGHTED], ids=lambda case: case.name
)


def data_of(case: Case, seed: int = 0) -> Context:
    """Some data with padding."""
    generator = torch.Generator().manual_seed(seed)
    params = case.family.sample(BATCH, "train", generator)
    data = case.family.context(params, SHOTS, generator)
    kept = torch.arange(SHOTS).expand(BATCH, -1) < torch.tensor([[5], [3], [1], [0]])
    return Context(data.x, data.y, kept)


def log_evidence(case: Case, data: Context) -> Tensor:
    """``log p(y | x)`` of each task by a formula that does not use the inference procedure."""
    family = case.family
    if case.name in ("conjugate_linear", "conjugate_normal", "features"):
        if isinstance(family, GPFunctions):  # weights ~ N(0, I)
            x, spread = family.model.features(data.x), family.noise
            mean, prior = (make(family.spec.param_dim, dtype=torch.float64) for make in (torch.zeros, torch.eye))
        else:
            x, spread = data.x, family.model.noise
            mean, prior = family.model.mean.double(), family.model.covariance.double()
        x, y = (v.double() * data.mask.unsqueeze(-1) for v in (x, data.y))  # a row of zeros is data of pure noise
        covariance = x @ prior @ x.mT + spread**2 * torch.eye(SHOTS, dtype=torch.float64)
        joint = MultivariateNormal(x @ mean, covariance).log_prob(y.squeeze(-1))
        noise = torch.distributions.Normal(0.0, spread).log_prob(torch.zeros((), dtype=torch.float64))
        return joint - noise * (~data.mask).sum(-1)
    if isinstance(family, BernoulliBandit):
        pulls = data.x * data.mask.unsqueeze(-1)
        wins = (pulls * data.y).sum(1)
        prior, posterior = (
            torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
            for a, b in (
                (family.model.alpha, family.model.beta),
                (family.model.alpha + wins, family.model.beta + pulls.sum(1) - wins),
            )
        )
        return (posterior - prior).sum(-1)
    if isinstance(family, UnknownNoise):
        model = family.model
        covariance = (model.rate / model.concentration) * (
            torch.eye(SHOTS, dtype=torch.float64) + data.x.double() @ model.covariance.double() @ data.x.double().mT
        )
        total = torch.zeros(BATCH, dtype=torch.float64)
        for b, real in enumerate(data.mask):  # together the targets are Student t, from which padding is left out
            if real.any():
                mean, y = (data.x[b, real] @ model.mean).numpy(), data.y[b, real, 0].numpy()
                law = stats.multivariate_t(mean, covariance[b][real][:, real].numpy(), df=2 * model.concentration)
                total[b] = float(law.logpdf(y))
        return total
    if isinstance(family, TabularTransitions):
        # An urn: each transition has the share of its next state so far, and puts one more of it in.
        total = torch.zeros(BATCH, dtype=torch.float64)
        for b in range(BATCH):
            urn = family.model.concentration.double().clone()
            for n in range(SHOTS):
                if data.mask[b, n]:
                    row, column = int(data.x[b, n].argmax()), int(data.y[b, n].argmax())
                    total[b] += (urn[row, column] / urn[row].sum()).log()
                    urn[row, column] += 1
        return total
    if isinstance(family, PacohSinusoid):
        # Given amplitude and x-shift the targets are Gaussian together; a Riemann sum over those two.
        axes = torch.linspace(0.7, 1.3, 121, dtype=torch.float64), torch.linspace(-0.5, 0.5, 201, dtype=torch.float64)
        u = torch.cartesian_prod(*axes).expand(BATCH, -1, -1).transpose(0, 1).unsqueeze(-2)
        x, y, real = data.x.double(), data.y.double().squeeze(-1), data.mask.double()
        basis = family.model.basis(x) * real.unsqueeze(-1)
        mean = family.model.curve(u, x).squeeze(-1) * real + basis @ torch.tensor([5.0, 0.5], dtype=torch.float64)
        spread = basis @ torch.tensor([0.1, 0.2], dtype=torch.float64).square().diag() @ basis.mT
        law = MultivariateNormal(mean, spread + 0.01 * torch.eye(SHOTS, dtype=torch.float64))
        prior = torch.distributions.Normal(0.0, 0.1).log_prob(u[..., 0, 1]).log_softmax(0)
        noise = torch.distributions.Normal(0.0, 0.1).log_prob(torch.zeros((), dtype=torch.float64))
        return (prior + law.log_prob(y * real)).logsumexp(0) - noise * (~data.mask).sum(-1)
    # A finite sum, or a much finer Riemann sum than the grid of the case.
    cells = FINER[case.name]().cells if isinstance(family, SineOrLine) else FINER.get(case.name, lambda: family.exact)()
    z = cells.points.unsqueeze(1).expand(-1, BATCH, -1)
    return (cells.log_weights.unsqueeze(1) + family.model.log_likelihood(z, data)).logsumexp(0)


# Where a grid is not exact, one that is finer than that of the case.
FINER = {
    "grid": lambda: Sinusoid(noise=0.5, resolution=400).exact,
    "kinds": lambda: SineOrLine(noise=1.0, resolution=200).exact,
    "partly_linear": lambda: PacohSinusoid(resolution=200).exact,
}


@each_exact
def test_one_density(case: Case) -> None:
    data = data_of(case)
    z = case.family.sample(BATCH, "train", torch.Generator().manual_seed(1))
    program = poutine.condition(case.family.model, {"z": z.unsqueeze(1)})
    trace = poutine.trace(program).get_trace(data)
    prior = case.family.model.prior(BATCH).log_prob(z)
    likelihood = case.family.model.likelihood(z.unsqueeze(1), data).log_prob(data.y)
    by_hand = prior + torch.where(data.mask, likelihood, 0.0).sum(-1)
    torch.testing.assert_close(case.family.model.log_joint(z, data), by_hand)
    torch.testing.assert_close(trace.log_prob_sum(), by_hand.sum())


@each_exact
def test_likelihood_is_normalised_in_the_targets(case: Case) -> None:
    """``p(y | x, z)`` integrates to one over y: by counting where it is discrete, by quadrature for the others."""
    data = data_of(case)
    z = case.family.sample(BATCH, "train", torch.Generator().manual_seed(1)).unsqueeze(1)
    values, width = torch.linspace(-30.0, 30.0, 12_001).unsqueeze(-1), 60.0 / 12_000
    if isinstance(case.family, BernoulliBandit):
        values, width = torch.tensor([[0.0], [1.0]]), 1.0
    if isinstance(case.family, TabularTransitions | Circles):
        values, width = torch.eye(case.family.spec.y_dim), 1.0
    values = values[:, None, None].expand(-1, BATCH, SHOTS, -1)
    log_prob = case.family.model.likelihood(z, data).log_prob(values)
    torch.testing.assert_close(log_prob.exp().sum(0) * width, torch.ones(BATCH, SHOTS), rtol=1e-4, atol=1e-4)


@each_exact
def test_elbo_at_the_exact_posterior_is_the_evidence_without_variance(case: Case) -> None:
    """``log p(z, y) - log q(z)`` is the log evidence for every draw; with the prior as the guide it is not."""
    data, model = data_of(case), case.family.model
    evidence = float(log_evidence(case, data).sum())
    inference, tolerance = case.family.exact, 1e-3
    if case.name in FINER:
        # The grid's density is constant within a cell, the model's is not: a draw half a cell from the centre, |t|
        # standard deviations from the mean, is off by |t| cell / (2 sd), here up to 0.1 per coordinate.
        inference, tolerance = FINER[case.name](), 0.5
    exact, no_update = (
        lambda _, q=belief.posterior: posterior_guide(q)
        for belief in (inference.update(inference.init(BATCH), data), inference.init(BATCH))
    )
    torch.manual_seed(0)
    draws = torch.tensor([-Trace_ELBO().loss(model, exact, data) for _ in range(20)])
    assert (draws - evidence).abs().max() < tolerance
    renyi = RenyiELBO(alpha=0.5, num_particles=4, vectorize_particles=True, max_plate_nesting=2)
    assert abs(-renyi.loss(model, exact, data) - evidence) < tolerance
    loose = torch.tensor([-Trace_ELBO().loss(model, no_update, data) for _ in range(20)])
    assert loose.std() > 0.5 and loose.std() > 5 * draws.std() and loose.mean() < evidence


@each_conjugate
def test_analytic_kl_elbo_has_the_evidence_as_its_mean(case: Case) -> None:
    """Its variance is not zero: the draw is only in the likelihood. Pyro offers it to reparameterised guides only."""
    data, model = data_of(case), case.family.model
    elbo = TraceMeanField_ELBO(num_particles=100, vectorize_particles=True, max_plate_nesting=2)
    torch.manual_seed(0)
    draws = torch.tensor([-elbo.loss(model, guide(case.family.exact), data) for _ in range(30)])
    error = float(draws.std() / math.sqrt(len(draws)))
    assert abs(float(draws.mean() - log_evidence(case, data).sum())) < 4 * error + 1e-3


@pytest.mark.parametrize("parallel", [True, False])
@each_conjugate
def test_predictive_of_pyro_agrees_with_the_closed_form(case: Case, parallel: bool) -> None:
    """``Predictive`` runs on the program as it is, with the procedure as its guide: means within 4 sigma."""
    data, exact = data_of(case), case.family.exact
    count = 4000 if parallel else 100
    torch.manual_seed(0)
    predict = Predictive(case.family.model, guide=guide(exact), num_samples=count, parallel=parallel)
    y = predict(data, observe=False)["y"]
    assert y.shape == (count, BATCH, SHOTS, case.family.spec.y_dim)
    law = exact.predictive(exact.update(exact.init(BATCH), data), data.x)
    error = (law.variance / count).sqrt()
    assert ((y.mean(0) - law.mean).abs() < 4 * error).all()


@each_exact
def test_prior_predictive_runs_on_the_program(case: Case) -> None:
    """Draws of the targets given nothing, against the model's own mean under draws of the prior."""
    data = data_of(case)
    torch.manual_seed(0)
    y = Predictive(case.family.model, num_samples=2000, parallel=True)(data, observe=False)["y"]
    z = case.family.model.prior(BATCH).sample((2000,))
    mean = case.family.model.likelihood(z.unsqueeze(-2), data).mean
    error = ((y.var(0) + mean.var(0)) / 2000).sqrt()
    assert ((y.mean(0) - mean.mean(0)).abs() <= 4.5 * error)[data.mask].all()


@each_conjugate
def test_predictives_multiply_to_the_evidence(case: Case) -> None:
    """The chain rule: ``log p(y) = sum_n log p(y_n | y_<n)``."""
    data, exact = data_of(case), case.family.exact
    data = Context.of(data.x, data.y)
    belief, total = exact.init(BATCH), torch.zeros(BATCH)
    for n in range(SHOTS):
        datum = data.rows(n, n + 1)
        total = total + exact.predictive(belief, datum.x).log_prob(datum.y).squeeze(1)
        belief = exact.update(belief, datum)
    torch.testing.assert_close(total.double(), log_evidence(case, data).double(), rtol=1e-4, atol=1e-4)


def test_programs_leave_no_trace_in_the_parameter_store() -> None:
    """Learned parameters of a program stay its own: two models of one class do not share them."""

    class Decoder(TaskModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(1, 1)
            self.scale = torch.nn.Parameter(torch.zeros(1))

        def prior(self, batch: int):
            return pyro.distributions.Normal(torch.zeros(batch, 1), 1.0).to_event(1)

        def likelihood(self, z, data):
            return pyro.distributions.Normal(self.net(data.x) + z, self.scale.exp()).to_event(1)

    case = EXACT[1]
    first, second = Decoder(), Decoder()
    for model in (first, second):
        trace = poutine.trace(model).get_trace(data_of(case))
        trace.log_prob_sum().backward()
        assert model.net.weight.grad is not None and model.scale.grad is not None
        assert trace.nodes["net$$$weight"]["value"] is model.net.weight
    assert not list(pyro.get_param_store().keys())


def test_program_without_data_is_the_prior() -> None:
    model = LinearGaussian(dim=2).model
    trace = poutine.trace(model).get_trace(Context.empty(BATCH, 2, 1))
    z = trace.nodes["z"]["value"].squeeze(1)
    torch.testing.assert_close(trace.log_prob_sum(), model.prior(BATCH).log_prob(z).sum())
