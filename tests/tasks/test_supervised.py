"""One suite for every supervised family."""

import math
from importlib.resources import files

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from bayesmeta.config import without_schema
from bayesmeta.tasks.bernoulli_bandit import BernoulliBandit
from bayesmeta.tasks.circles import Circles
from bayesmeta.tasks.digits import Digits
from bayesmeta.tasks.dynamics import Dynamics
from bayesmeta.tasks.finite_hypotheses import FiniteHypotheses
from bayesmeta.tasks.gp_functions import GPFunctions
from bayesmeta.tasks.linear_gaussian import LinearGaussian
from bayesmeta.tasks.normal_normal import NormalNormal
from bayesmeta.tasks.pacoh_sinusoid import PacohSinusoid
from bayesmeta.tasks.sine_or_line import SineOrLine
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.tasks.tabular_transitions import TabularTransitions
from bayesmeta.tasks.unknown_noise import UnknownNoise
from bayesmeta.types import SPLITS, SupervisedFamily

FAMILIES = [
    LinearGaussian(),
    NormalNormal(prior_mean=1.0),
    Sinusoid(),
    BernoulliBandit(),
    FiniteHypotheses(),
    UnknownNoise(),
    TabularTransitions(),
    Digits(),
    Dynamics(steps=20),
    SineOrLine(),
    PacohSinusoid(train_tasks=None),
    GPFunctions(),
    Circles(),
]
KNOWN = [family for family in FAMILIES if hasattr(family, "model")]  # those that know their truth
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.spec.name)
each_known = pytest.mark.parametrize("family", KNOWN, ids=lambda family: family.spec.name)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@each_family
@pytest.mark.parametrize("split", SPLITS)
def test_shapes_and_one_source_of_randomness(family: SupervisedFamily, split: str) -> None:
    state = torch.get_rng_state()
    params = family.sample(7, split, generator := seeded())
    data = family.context(params, 4, generator)
    spec = family.spec
    assert params.shape == (7, spec.param_dim) and params.dtype == torch.float32
    assert data.x.shape == (7, 4, spec.x_dim) and data.y.shape == (7, 4, spec.y_dim)
    assert data.mask.all() and data.x.dtype == data.y.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state)
    again = family.sample(7, split, generator := seeded())
    assert torch.equal(again, params) and torch.equal(family.context(again, 4, generator).y, data.y)
    assert not torch.equal(family.sample(7, split, seeded(1)), params)
    assert family.context(params, 0, seeded()).x.shape == (7, 0, spec.x_dim)


@each_known
def test_training_tasks_are_the_models_prior(family: SupervisedFamily) -> None:
    """Means within 4 standard errors of the prior's, and variances within 10 %."""
    for split in ("train", "test"):
        params = family.sample(20_000, split, seeded())
        prior = family.model.prior(1)
        assert ((params.mean(0) - prior.mean[0]).abs() < 4 * (prior.variance[0] / 20_000).sqrt() + 1e-6).all()
        torch.testing.assert_close(params.var(0), prior.variance[0], rtol=0.1, atol=0)


@each_known
def test_data_are_the_models_likelihood(family: SupervisedFamily) -> None:
    """Targets around the likelihood's mean with its variance, given the same parameters and inputs."""
    params = family.sample(50, "train", seeded())
    data = family.context(params, 400, seeded(1))
    law = family.model.likelihood(params.unsqueeze(1), data)
    score = (data.y - law.mean) / law.stddev.clamp_min(1e-3)
    assert abs(float(score.mean())) < 4 / math.sqrt(score.numel())
    assert math.isclose(float(score.square().mean()), 1.0, rel_tol=0.1)


@each_known
def test_much_data_lead_the_exact_posterior_to_the_truth(family: SupervisedFamily) -> None:
    params = family.sample(8, "test", seeded())
    data = family.context(params, 40, seeded(1))
    exact = family.exact
    prior, posterior = exact.init(8).posterior, exact.update(exact.init(8), data).posterior
    assert (posterior.variance < prior.variance).all()
    assert ((posterior.mean - params).abs() < 4.5 * posterior.stddev + 1e-3).all()


@pytest.mark.parametrize(
    "family, beyond",
    [
        (LinearGaussian(ood_scale=4.0), lambda p: math.isclose(float(p.std()), 4.0, rel_tol=0.1)),
        (NormalNormal(prior_scale=0.5), lambda p: math.isclose(float(p.std()), 1.5, rel_tol=0.1)),
        (
            Sinusoid(),
            lambda p: (p >= torch.tensor([5.0, math.pi])).all() and (p <= torch.tensor([8.0, 1.5 * math.pi])).all(),
        ),
        (BernoulliBandit(), lambda p: math.isclose(float(p.mean()), 1 / 6, rel_tol=0.1)),
        (FiniteHypotheses(), lambda p: torch.allclose(p.norm(dim=-1), torch.tensor(1.5))),
        (UnknownNoise(), lambda p: math.isclose(float(p[:, -1].mean()), 9 * 0.25, rel_tol=0.1)),
        (
            SineOrLine(),
            lambda p: torch.where(p[:, :1] > 0, p[:, 1:].abs() >= 3, p[:, 1:] >= torch.tensor([5.0, math.pi])).all(),
        ),
        (
            PacohSinusoid(train_tasks=None),
            lambda p: p[:, 0].min() >= 1.3 and math.isclose(float(p[:, 3].std()), 0.6, rel_tol=0.1),
        ),
        (GPFunctions(ood_scale=2.0), lambda p: math.isclose(float(p.std()), 2.0, rel_tol=0.1)),
        (Circles(), lambda p: (p[:, :2].abs() >= 3).all() and (p[:, 2] <= 1.5).all()),
        # Var p_0 = m (1 - m) / (c + 1) with m = 1 / 3 and c, the sum of the concentration, 3 / 10 instead of 3.
        (TabularTransitions(), lambda p: math.isclose(float(p.var(0).mean()), 2 / 9 / 1.3, rel_tol=0.1)),
    ],
    ids=lambda value: value.spec.name if hasattr(value, "spec") else "",
)
def test_ood_lies_beyond_the_prior(family: SupervisedFamily, beyond) -> None:
    assert beyond(family.sample(2000, "ood", seeded()))
    assert not beyond(family.sample(2000, "train", seeded()))


@each_family
def test_unknown_split_is_named(family: SupervisedFamily) -> None:
    with pytest.raises(ValueError, match=rf"{family.spec.name}: expected a split of train, test, ood; got 'val'"):
        family.sample(1, "val", seeded())


@each_family
def test_a_config_builds_the_defaults(family: SupervisedFamily) -> None:
    name = family.spec.name.removesuffix("-v1")
    config = OmegaConf.create(files("bayesmeta.configs").joinpath("task", f"{name}.yaml").read_text())
    schema = config.pop("_schema_")
    parts = {key for key, value in config.items() if "_target_" in str(value)}  # each with a schema of its own
    assert set(schema) - {"_kind_"} == {key for key in config if not key.startswith("_")} - parts
    built, default = instantiate(without_schema(OmegaConf.to_container(config))), type(family)()
    assert built.spec == default.spec
    first, second = (f.context(f.sample(3, "ood", seeded()), 5, seeded()) for f in (built, default))
    assert torch.equal(first.x, second.x) and torch.equal(first.y, second.y)


def test_parameters_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected hypotheses >= 2 and noise > 0, got 1 and 0\.5"):
        FiniteHypotheses(hypotheses=1)
    with pytest.raises(ValueError, match=r"Sinusoid: noise is a standard deviation, expected >= 0, got -1\.0"):
        Sinusoid(noise=-1.0)
