"""Exact procedures are calibrated; one that is 10 % over-confident, or ignores its data, is found out."""

import dataclasses
import functools

import numpy as np
import pytest

from bayesmeta.inference.beliefs import Beta, FullGaussian, Weighted
from bayesmeta.inference.dirichlet import DirichletBelief
from bayesmeta.inference.kinds import KindsBelief
from bayesmeta.inference.linear_head import MatrixNormal
from bayesmeta.inference.normal_inverse_gamma import NormalInverseGammaBelief
from bayesmeta.inference.partly_linear import PartlyLinearBelief
from bayesmeta.types import Belief
from tests.laws.cases import EXACT, Case
from tests.laws.sbc import p_value, pits, rejected

ALPHA = 1e-3  # the declared failure rate of each test; the seed is fixed
SETTING = {"tasks": 4000, "shots": 6, "draws": 99, "seed": 0}

each_exact = pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)


@functools.singledispatch
def overconfident(belief: Belief) -> Belief:
    """The density raised to the power 1/0.9^2: a Gaussian's standard deviations shrink by 10 %."""
    raise NotImplementedError(type(belief))


POWER = 1 / 0.9**2


@overconfident.register
def _(belief: MatrixNormal) -> MatrixNormal:
    return dataclasses.replace(belief, information=belief.information * POWER, precision=belief.precision * POWER)


@overconfident.register
def _(belief: FullGaussian) -> FullGaussian:
    return FullGaussian(belief.information * POWER, belief.precision * POWER)


@overconfident.register
def _(belief: Beta) -> Beta:
    return Beta(1 + (belief.alpha - 1) * POWER, 1 + (belief.beta - 1) * POWER)


@overconfident.register
def _(belief: Weighted) -> Weighted:
    return Weighted(belief.points, belief.log_weights * POWER, belief.cell)


@overconfident.register
def _(belief: KindsBelief) -> KindsBelief:
    return dataclasses.replace(belief, log_weights=belief.log_weights * POWER)


@overconfident.register
def _(belief: PartlyLinearBelief) -> PartlyLinearBelief:
    sums = ("log_weights", "information", "precision")
    return dataclasses.replace(belief, **{name: getattr(belief, name) * POWER for name in sums})


@overconfident.register
def _(belief: NormalInverseGammaBelief) -> NormalInverseGammaBelief:
    # The density has the factor v^-(concentration + 1 + D / 2), and the other three multiply -1 / v in its exponent.
    rest = 1 + belief.information.shape[-1] / 2
    concentration = (belief.concentration + rest) * POWER - rest
    return NormalInverseGammaBelief(
        belief.information * POWER, belief.precision * POWER, concentration, belief.rate * POWER
    )


@overconfident.register
def _(belief: DirichletBelief) -> DirichletBelief:
    return DirichletBelief(1 + (belief.concentration - 1) * POWER)


@each_exact
def test_exact_inference_is_calibrated(case: Case) -> None:
    assert not rejected(pits(case.family, case.family.exact, **SETTING), ALPHA)


@each_exact
def test_ten_percent_overconfidence_is_found(case: Case) -> None:
    ranks = pits(case.family, case.family.exact, **SETTING, distort=overconfident)
    assert "log_likelihood" in rejected(ranks, ALPHA)


@each_exact
def test_a_posterior_that_ignores_its_data_is_found_by_the_likelihood_alone(case: Case) -> None:
    exact = case.family.exact
    ranks = pits(case.family, exact, **SETTING, distort=lambda _: exact.init(SETTING["tasks"]))
    assert rejected(ranks, ALPHA) == {"log_likelihood"}


def test_the_test_rejects_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    values = np.array([p_value(random.random(500)) for _ in range(400)])
    for level in (0.05, 0.2):
        assert 0.4 * level < (values < level).mean() < level + 4 * np.sqrt(level * (1 - level) / 400)
