"""`check` as a user calls it: any procedure, a Pyro guide, a model of one's own."""

import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from bayesmeta.diagnostics import check, correctness_figures, load
from bayesmeta.inference.beliefs import Weighted
from bayesmeta.inference.conjugate import ConjugateGaussian
from bayesmeta.inference.guides import FromGuide
from bayesmeta.inference.mcmc import Chains, ReferenceRejected
from bayesmeta.models.distributions import without_row
from bayesmeta.models.task_model import TaskModel
from bayesmeta.tasks.bernoulli_bandit import BernoulliBandit
from bayesmeta.tasks.linear_gaussian import LinearGaussian
from bayesmeta.tasks.model_family import ModelFamily
from bayesmeta.tasks.normal_normal import NormalNormal
from bayesmeta.types import Context
from tests.laws.cases import EXACT

SMALL = {"tasks": 100, "draws": 99, "sizes": (1, 5), "queries": 4}
FAMILY = NormalNormal(noise=0.5)


def outcomes(found) -> dict[str, str]:
    return {verdict.question: verdict.outcome for verdict in found.verdicts}


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_exact_procedures_pass(case):
    before = torch.random.get_rng_state()
    found = check(case.family.exact, case.family, **SMALL)
    assert found.passed, str(found)
    assert torch.equal(before, torch.random.get_rng_state())
    assert set(outcomes(found).values()) == {"passed", "note"}
    assert {"prior_sbc", "calibration", "distance", "reference", "predictive"} <= set(found.tree.children)


def guide(width: float = 1.0):
    """The posterior of a normal mean by hand, with its standard deviation times ``width``."""

    def program(data: Context) -> torch.Tensor:
        precision = 1 + data.mask.sum(1, keepdim=True) / 0.25
        mean = (data.y.squeeze(-1) * data.mask).sum(1, keepdim=True) / 0.25 / precision
        with pyro.plate("task", data.batch, dim=-2):
            return pyro.sample(
                "z", dist.Normal(mean.unsqueeze(-1), width * precision.rsqrt().unsqueeze(-1)).to_event(1)
            )

    return program


def test_a_guide_written_by_hand_is_checked_as_it_is():
    right = check(guide(), FAMILY, **SMALL)
    assert right.passed and float(right.tree["distance"]["kl_reference"].max()) < 1e-5
    wrong = check(guide(0.6), FAMILY, **SMALL)
    (failed,) = [
        v for v in wrong.verdicts if v.outcome == "failed" and "calibrated?" in v.question and "belief" in v.question
    ]
    assert "too narrow" in failed.meaning and not wrong.passed


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda d: (d.posterior.mean, 2.0 * d.posterior.stddev), r"too wide: .* 0\.[45]"),
        (lambda d: (d.posterior.mean + 0.8 * d.posterior.stddev, d.posterior.stddev), r"biased, by 0\.[78]"),
        (lambda d: (torch.zeros_like(d.posterior.mean), torch.ones_like(d.posterior.stddev)), "ignores the data"),
    ],
    ids=["wide", "biased", "prior"],
)
def test_the_verdict_says_what_is_wrong(wrong, words):
    def faulty(data: Context) -> torch.Tensor:
        mean, sd = wrong(FAMILY.exact.update(FAMILY.exact.init(data.batch), data))
        with pyro.plate("task", data.batch, dim=-2):
            return pyro.sample("z", dist.Normal(mean.unsqueeze(1), sd.unsqueeze(1)).to_event(1))

    found = check(faulty, FAMILY, **SMALL)
    (verdict,) = [v for v in found.verdicts if v.question == "Is the belief calibrated?"]
    assert verdict.outcome == "failed" and re.search(words, verdict.meaning), verdict.meaning


def test_reliability_of_classes_is_in_the_file_and_in_the_report():
    family = BernoulliBandit(arms=2)
    found = check(family.exact, family, **{**SMALL, "queries": 40})
    group = found.tree["predictive"].to_dataset()
    count = group["count"].to_numpy()
    assert count.sum() == SMALL["tasks"] * 40
    error = np.nansum(count * np.abs(group["accuracy"] - group["confidence"])) / count.sum()
    assert error == pytest.approx(float(group["value"].sel(score="ece")), abs=1e-6)
    (axes,) = correctness_figures.reliability(found.tree).axes
    np.testing.assert_allclose(axes.lines[1].get_ydata(), group["accuracy"].to_numpy()[count > 0])
    assert "confidence" not in check(FAMILY.exact, FAMILY, **SMALL).tree["predictive"].data_vars


class Particles:
    """Draws of the exact posterior in its place; the prior before any data."""

    def init(self, batch):
        return FAMILY.exact.init(batch)

    def update(self, belief, data):
        points = FAMILY.exact.update(belief, data).posterior.sample((500,)).transpose(0, 1)
        return Weighted(points, torch.zeros(points.shape[:2]), torch.zeros(1))


def test_particles_are_ranked_without_a_density():
    """No coverage, no k-hat, no KL: ranks of coordinates and likelihood, and the sliced Wasserstein distance."""
    found = check(Particles(), FAMILY, **SMALL)
    assert found.passed, str(found)
    assert "log_q" not in found.tree["prior_sbc"].data_vars and "k_hat" not in found.tree["fit_stats"].data_vars
    assert found.tree["distance"]["kl_reference"].sel(context_step=5).isnull().all()
    assert "sliced Wasserstein distance" in str(found)


def test_predictions_can_be_left_out():
    found = check(FAMILY.exact, FAMILY, **{**SMALL, "queries": 0})
    assert not {"predictive", "ood"} & set(found.tree.children) and found.passed


def test_the_guide_of_an_inference_procedure_is_the_procedure():
    data = FAMILY.context(FAMILY.sample(3, "test", torch.Generator().manual_seed(0)), 4, torch.Generator())
    procedure = FromGuide(FAMILY.model, guide(), x_dim=1, y_dim=1)
    belief = procedure.update(procedure.update(procedure.init(3), data.rows(0, 1)), data.rows(1, 4))
    exact = FAMILY.exact.update(FAMILY.exact.init(3), data).posterior
    torch.testing.assert_close(belief.posterior.mean, exact.mean)
    torch.testing.assert_close(belief.posterior.stddev, exact.stddev)


def test_laws_of_guides_lose_their_row():
    """Normals keep their closed forms; any other law is the same law."""
    mean, sd = torch.randn(3, 1, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 2.0])
    full = without_row(dist.MultivariateNormal(mean, torch.diag(sd**2)))
    diagonal = without_row(dist.Normal(mean, sd).to_event(1))
    other = without_row(dist.Laplace(mean, sd).to_event(1))
    assert isinstance(full, MultivariateNormal) and isinstance(diagonal.base_dist, Normal)
    value = torch.zeros(4, 3, 2)
    torch.testing.assert_close(full.log_prob(value), diagonal.log_prob(value))
    torch.testing.assert_close(other.log_prob(value), dist.Laplace(mean[:, 0], sd).log_prob(value).sum(-1))
    torch.testing.assert_close(other.mean, mean[:, 0])
    torch.testing.assert_close(other.variance, 2 * sd.square().expand(3, 2))
    assert other.sample((7,)).shape == other.rsample((7,)).shape == (7, 3, 2) and other.has_rsample


def test_a_guide_with_other_sites_is_refused():
    def hierarchical(data):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("task", data.batch, dim=-2):
            pyro.sample("z", dist.Normal(torch.zeros(data.batch, 1, 1), scale).to_event(1))

    with pytest.raises(ValueError, match=r"expected a guide whose one latent site is 'z' .* got 'scale', 'z'"):
        check(hierarchical, FAMILY, **SMALL)

    def without_row(data):
        with pyro.plate("task", data.batch):
            pyro.sample("z", dist.Normal(torch.zeros(data.batch, 1), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"with batch \[100, 1\] and event \[D\], got 'z' with batch \[100\]"):
        check(without_row, FAMILY, **SMALL)


class Slope(TaskModel):
    """A user's model: a line through the origin."""

    def prior(self, batch):
        return dist.Normal(torch.zeros(batch, 1), 2.0).to_event(1)

    def likelihood(self, z, data):
        return dist.Normal(z * data.x, 0.5).to_event(1)


def test_a_model_alone_is_a_family():
    def inputs(batch, shots, generator):
        return torch.rand(batch, shots, 1, generator=generator)

    linear = LinearGaussian(dim=1, prior_scale=2.0, noise=0.5)
    family = ModelFamily(Slope(), inputs, name="slope", exact=linear.exact)
    assert family.spec.x_dim == 1 and family.spec.param_names == ("z0",)
    before = torch.random.get_rng_state()
    first, again = (family.sample(5, "test", torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(before, torch.random.get_rng_state())
    found = check(ConjugateGaussian(linear.model), family, **SMALL)
    assert found.passed and "ood" not in found.tree.children
    with pytest.raises(ValueError, match="a model's prior has no ood split"):
        family.sample(5, "ood", torch.Generator())


def test_the_users_quantities_are_named(tmp_path):
    found = check(FAMILY.exact, FAMILY, **SMALL, quantities={"square": lambda z, data: z.square().sum(-1)})
    assert "square" in found.tree["prior_sbc"].data_vars
    results, report = found.save(tmp_path / "new")
    tree = load(results)
    assert "square" in tree["calibration"]["quantity"].to_numpy() and report.stat().st_size > 50_000
    assert tree.attrs["seconds_per_task"] > 0
    for group in tree.children:
        assert tree[group].identical(found.tree[group]), group


def test_same_seed_same_result():
    first, again, other = (check(FAMILY.exact, FAMILY, **SMALL, seed=seed) for seed in (1, 1, 2))
    assert first.tree["prior_sbc"].identical(again.tree["prior_sbc"])
    assert str(first) == str(again) != str(other)


class Refused:
    """A reference whose chains never converge."""

    def init(self, batch):
        return FAMILY.exact.init(batch)

    def update(self, belief, data):
        raise ReferenceRejected(Chains(torch.randn(4, 8, 1, 1), data, divergences=3))


def test_a_refused_reference_makes_the_comparison_invalid_and_nothing_fail():
    found = check(FAMILY.exact, FAMILY, **SMALL, reference=Refused())
    assert outcomes(found)["How far is it from the reference posterior?"] == "invalid" and found.passed
    assert "3 divergences" in str(found) and "distance" not in found.tree.children


def test_what_cannot_be_checked_is_said():
    class Simulator:
        """A family that does not know its own density."""

        spec, sample, context = FAMILY.spec, FAMILY.sample, FAMILY.context

    with pytest.raises(ValueError, match="expected a family with a TaskModel as its `model`"):
        check(FAMILY.exact, Simulator())
    with pytest.raises(
        ValueError, match=r"expected a latent of dimension 1, the parameters of normal_normal-v1, got \[3\]"
    ):
        check(LinearGaussian(dim=3).exact, FAMILY)
