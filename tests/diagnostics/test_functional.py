"""Beliefs about functions: against closed forms, calibration, faults that must show, and learners up to the report."""

import math
from dataclasses import dataclass

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import nn

from bayesmeta.algorithms.maml import MAML
from bayesmeta.diagnostics import learners
from bayesmeta.diagnostics.calibration import calibration, ranks
from bayesmeta.diagnostics.correctness import correctness, rejected_quantities
from bayesmeta.diagnostics.decoding import value_errors
from bayesmeta.diagnostics.export import posterior_after, results_from
from bayesmeta.diagnostics.functional import (
    Draws,
    FunctionValues,
    misfit,
    shared_probes,
    true_values,
    value_names,
    values_at,
)
from bayesmeta.diagnostics.latent import is_point, latent_names
from bayesmeta.diagnostics.report import report
from bayesmeta.diagnostics.results import array, attribute, load, save, validate
from bayesmeta.diagnostics.run import diagnose, results_of
from bayesmeta.diagnostics.unseen import predicted_after
from bayesmeta.diagnostics.verdict import passed, verdicts
from bayesmeta.episodic import Episodes, Learner
from bayesmeta.inference.beliefs import Point, Weighted
from bayesmeta.inference.particles import Particles
from bayesmeta.models.architectures import Network
from bayesmeta.models.network_model import NetworkModel
from bayesmeta.models.outputs import GaussianOutput
from bayesmeta.tasks.circles import Circles
from bayesmeta.tasks.few_shot import FewShot, ImageClasses
from bayesmeta.tasks.linear_gaussian import LinearGaussian
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.train import Evaluating, Saving, seeded, train
from bayesmeta.types import Context, Spec

FAMILY = LinearGaussian(dim=2, noise=0.5)
TASKS, DRAWS = 300, 200
SIZES = [0, 1, 3, 10]


def data(tasks: int = TASKS, size: int = 10) -> tuple[torch.Tensor, Context]:
    generator = torch.Generator().manual_seed(0)
    params = FAMILY.sample(tasks, "test", generator)
    return params, FAMILY.context(params, size, generator)


def probes() -> torch.Tensor:
    return shared_probes(FAMILY, 20, torch.Generator().manual_seed(1))


def outcomes(tree: xr.DataTree) -> dict[str, str]:
    return {verdict.question: verdict.outcome for verdict in verdicts(tree)}


def judged(inference: object, draws: int = DRAWS) -> xr.DataTree:
    """Results of a procedure for the linear family's weights, seen through the function, with ranks of its values."""
    params, context = data()
    truth = true_values(FAMILY, params, probes())
    functions = FunctionValues(inference, FAMILY.model, probes(), 1)
    reference = FunctionValues(FAMILY.exact, FAMILY.model, probes(), 1, seed=1)
    tree = results_from(
        context,
        params,
        functions,
        FAMILY.spec,
        sizes=SIZES,
        draws=draws,
        truth=truth,
        reference=reference,
        attrs={"latent": "function values"},
    )
    group = ranks(tree, context, truth, quantities={"misfit": misfit(probes(), classes=False)})
    tree["prior_sbc"], tree["calibration"] = xr.DataTree(group), xr.DataTree(calibration(group))
    return tree


# The belief about the function


def test_moments_of_the_exact_belief_are_those_of_the_gaussian_predictive():
    """Means and variances of 4000 draws against ``x^T m`` and ``x^T C x``: every z-score is N(0, 1), 6 never occurs."""
    _, context = data(20)
    draws = 4000
    found = posterior_after(FunctionValues(FAMILY.exact, FAMILY.model, probes(), 1, draws=draws), context)
    exact = FAMILY.exact.update(FAMILY.exact.init(20), context).posterior
    mean = exact.mean @ probes().mT
    variance = torch.einsum("px,bxy,py->bp", probes(), exact.covariance_matrix, probes())
    assert ((found.mean - mean) / (variance / draws).sqrt()).abs().max() < 6
    assert ((found.variance / variance - 1) / math.sqrt(2 / draws)).abs().max() < 6


def test_exact_inference_is_calibrated_about_functions_and_at_no_distance_from_itself():
    tree = judged(FAMILY.exact)
    validate(tree)
    assert rejected_quantities(tree) == {} and passed(correctness(tree))
    names = array(tree, "calibration", "quantity").tolist()
    assert names == [*(f"z{p}" for p in range(8)), "tarp", "misfit"]
    square = (array(tree, "fit_stats", "z_score") ** 2).mean((1, 2))
    # The mean of squares of TASKS tasks, each of a rank-2 Gaussian: variance 1 at most. Draws add 1 / DRAWS.
    assert np.abs(square - 1).max() < 5 / TASKS**0.5 + 0.05
    ratio = array(tree, "distance", "sd_ratio")
    assert np.abs(np.log(ratio)).mean() < 0.1 and np.isnan(array(tree, "distance", "kl_reference")).all()
    assert outcomes(tree)["How far is it from the reference posterior?"] == "note"
    assert "log_q" not in tree["prior_sbc"].data_vars and "sample_stats" not in tree.children


class Distorted:
    """The exact belief with its mean moved and its standard deviations scaled, or the prior whatever the data."""

    def __init__(self, *, width: float = 1.0, blind: bool = False) -> None:
        self.width, self.blind = width, blind

    def init(self, batch):
        return DistortedBelief(FAMILY.exact.init(batch), 1.0)

    def update(self, belief, data):
        inner = belief.inner if self.blind else FAMILY.exact.update(belief.inner, data)
        return DistortedBelief(inner, self.width)


@dataclass(frozen=True)
class DistortedBelief:
    inner: object
    width: float

    @property
    def posterior(self):
        law = self.inner.posterior
        return dist.MultivariateNormal(law.mean, scale_tril=self.width * law.scale_tril)


def test_the_prior_in_place_of_the_posterior_is_rejected_by_what_depends_on_the_data():
    """Its values are calibrated one by one, and so is TARP with references that are blind to the data."""
    tree = judged(Distorted(blind=True))
    assert set(rejected_quantities(tree)) == {"misfit"}
    (verdict,) = [v for v in verdicts(tree) if v.question == "Is the belief calibrated?"]
    assert verdict.outcome == "failed" and "ignores the data" in verdict.meaning
    assert outcomes(tree)["Does the belief respond to data?"] == "failed"
    np.testing.assert_array_equal(array(tree, "fit_stats", "contraction"), 0)  # the same draws at every size


def test_a_belief_too_narrow_is_rejected_by_its_values():
    tree = judged(Distorted(width=0.6))
    rejected = rejected_quantities(tree)
    assert any(name[0] == "z" for name in rejected)
    (verdict,) = [v for v in verdicts(tree) if v.question == "Is the belief calibrated?"]
    assert "too narrow" in verdict.meaning and pytest.approx(1.67, abs=0.01) == 1 / 0.6


class TenDraws:
    """Ten draws of the exact belief as particles."""

    def init(self, batch):
        return self._particles(FAMILY.exact.init(batch), Context.empty(batch, 2, 1))

    def update(self, belief, data):
        return self._particles(FAMILY.exact.update(FAMILY.exact.init(data.batch), data), data)

    def _particles(self, belief, data):
        return Particles(belief.posterior.sample((10,)).transpose(0, 1), data)


def test_few_particles_are_ranked_as_what_they_are():
    """Ten exact draws are calibrated as ten draws; resampled into 200 they would claim what they do not know."""
    _, context = data(5)
    functions = FunctionValues(TenDraws(), FAMILY.model, probes(), 1)
    assert learners._draws(functions, context, 200) == 10
    assert rejected_quantities(judged(TenDraws(), draws=10)) == {}
    assert rejected_quantities(judged(TenDraws(), draws=200))


def test_draws_are_given_out_once_each():
    points = torch.arange(12.0).reshape(1, 6, 2)
    law = Draws(points)
    assert law.sample((6,)).flatten(1).sort(0).values.tolist() == points[0].tolist()
    assert sorted(law.sample((12,))[:, 0, 0].tolist()) == sorted(2 * points[0, :, 0].tolist())
    assert law.sample().shape == (1, 2) and law.expand((3,)).sample((2, 2)).shape == (2, 2, 3, 2)
    torch.testing.assert_close(law.variance, points.var(1, correction=0))
    assert law.log_prob(torch.zeros(4, 1, 2)).isnan().all()


def test_supports_are_pushed_forward_and_anything_else_is_drawn_from():

    class Fixed:
        def __init__(self, belief):
            self.belief = belief

        def init(self, batch):
            return self.belief

        def update(self, belief, data):
            return belief

    z = torch.randn(4, 7, 2, generator=torch.Generator().manual_seed(0))
    expected = z @ probes().mT
    even, odd = torch.zeros(4, 7), torch.arange(7.0).expand(4, 7)

    def values(belief):
        return FunctionValues(Fixed(belief), FAMILY.model, probes(), 1, draws=50).init(4).values

    torch.testing.assert_close(values(Weighted(z, even, torch.zeros(2))), expected)
    torch.testing.assert_close(values(Point(z[:, 0])), expected[:, :1])
    drawn = values(Weighted(z, odd, torch.zeros(2)))
    assert drawn.shape == (4, 50, 8)
    among = (drawn.unsqueeze(2) - expected.unsqueeze(1)).abs().amax(-1) < 1e-5
    assert bool(among.any(-1).all()) and among[..., -1].float().mean() > 0.4  # the last has 0.63 of the weight
    assert values(Weighted(z, even, torch.ones(2))).shape == (4, 50, 8)


def test_the_same_seed_gives_the_same_values_in_parts_and_leaves_the_global_state(monkeypatch):
    _, context = data(6)
    before = torch.random.get_rng_state()
    functions = FunctionValues(FAMILY.exact, FAMILY.model, probes(), 1)
    first, again = (posterior_after(functions, context).points for _ in range(2))
    other = posterior_after(FunctionValues(FAMILY.exact, FAMILY.model, probes(), 1, seed=1), context).points
    assert torch.equal(first, again) and not torch.equal(first, other)
    twice = functions.update(functions.update(functions.init(6), context.rows(0, 4)), context.rows(4, 10))
    torch.testing.assert_close(twice.values, first, atol=1e-4, rtol=1e-4)
    assert twice.data.size == 10
    monkeypatch.setattr("bayesmeta.diagnostics.functional._ELEMENTS", 300)
    assert posterior_after(functions, context).points.shape == first.shape
    assert torch.equal(before, torch.random.get_rng_state())


def test_probes_of_each_task_are_its_own():
    _, context = data(5)
    functions = FunctionValues(FAMILY.exact, FAMILY.model, context.x[:, :3], 1)
    every = posterior_after(functions, context)
    exact = FAMILY.exact.update(FAMILY.exact.init(5), context).posterior
    sd = (context.x[:, :3] @ exact.covariance_matrix * context.x[:, :3]).sum(-1).sqrt()
    assert ((every.mean - (context.x[:, :3] @ exact.mean.unsqueeze(-1)).squeeze(-1)) / sd).abs().max() < 6 / 200**0.5
    assert functions.of_tasks(slice(1, 3)).init(2).values.shape == (2, 200, 3)
    with pytest.raises(ValueError, match=r"expected the 5 tasks that the probes are of, got 2; use of_tasks"):
        functions.init(2)


def test_true_values_and_names():
    params, _ = data(3)
    torch.testing.assert_close(true_values(FAMILY, params, probes()), params @ probes().mT)
    sinusoid, line = Sinusoid(noise=0.0), torch.linspace(-5, 5, 3).unsqueeze(-1)
    assert sinusoid.model is None
    truth = true_values(sinusoid, torch.tensor([[2.0, 0.5]]), line)
    torch.testing.assert_close(truth, 2 * (line.T - 0.5).sin())
    circles = Circles(flip=0.1)
    at = torch.zeros(1, 2)
    torch.testing.assert_close(true_values(circles, torch.tensor([[0.0, 0.0, 2.0]]), at), torch.tensor([[0.9]]))
    assert true_values(Circles(positives=1), torch.tensor([[0.0, 0.0, 2.0]]), at) is None
    assert value_names(line, sinusoid.spec) == ["f(-5)", "f(0)", "f(5)"]
    assert value_names(at, circles.spec) == ["p1(x0)"]
    assert value_names(at, Spec("many", 2, 3, ("a",))) == ["f0(x0)", "f1(x0)", "f2(x0)"]
    assert value_names(line.expand(4, -1, -1), Spec("ways", 1, 3, ("a",), classes=True))[:3] == [
        f"p{c}(x0)" for c in range(3)
    ]


def test_probes_are_in_order_and_those_of_the_seed():
    found = shared_probes(Sinusoid(), 40, torch.Generator().manual_seed(3))
    assert found.shape == (8, 1) and bool((found[1:] > found[:-1]).all()) and found[0] < -2.5 < 2.5 < found[-1]
    assert torch.equal(found, shared_probes(Sinusoid(), 40, torch.Generator().manual_seed(3)))


def test_a_likelihood_without_a_mean_is_refused():
    class Categories(NetworkModel):
        def likelihood(self, z, data):
            return dist.Categorical(logits=torch.zeros(len(z), *data.x.shape[:2], 1, 3)).to_event(1)

    model = Categories(nn.Linear(2, 1), GaussianOutput(1))
    with pytest.raises(ValueError, match="expected a likelihood with a mean, got Independent; use a one-hot code"):
        values_at(model, torch.zeros(1, 1, 3), torch.zeros(1, 1, 2))


# Learners


class Fitted(Learner):
    """A learner whose belief is any procedure's."""

    def loss(self, support, query):
        raise NotImplementedError


class Diagonal(nn.Module):
    """A belief like that of amortised Bayesian MAML: a diagonal Gaussian over the weights of a linear network.

    Here it is the exact posterior's mean with the standard deviations of its marginals.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model = NetworkModel(nn.Linear(2, 1), GaussianOutput(1, noise=0.5))
        with torch.no_grad():
            for parameter in self.model.network.parameters():
                parameter.zero_()

    def init(self, batch):
        return DiagonalBelief(FAMILY.exact.init(batch))

    def update(self, belief, data):
        return DiagonalBelief(FAMILY.exact.update(belief.inner, data))


@dataclass(frozen=True)
class DiagonalBelief:
    inner: object

    @property
    def posterior(self):
        law = self.inner.posterior
        none = law.mean.new_zeros(len(law.mean), 1)  # of the bias
        return dist.Normal(torch.cat([law.mean, none], -1), torch.cat([law.stddev, none + 1e-6], -1)).to_event(1)


def test_a_diagonal_gaussian_over_weights_is_judged_as_a_function(unpainted):
    learner = Fitted(Diagonal(), Episodes())
    tree = results_of(learner, FAMILY, tasks=100, draws=100, shots=10)
    validate(tree)
    assert {"prior_sbc", "distance", "predictive", "ood", "decoded", "exact"} <= set(tree.children)
    assert array(tree, "posterior", "context_step").tolist() == [0, 1, 2, 5, 10]
    assert attribute(tree, "inference") == "Diagonal" and attribute(tree, "inference_kind") == "amortised"
    assert array(tree, "constant_data", "probes").shape == (8, 2) and latent_names(tree)[1] == "f(x1)"
    found = outcomes(tree)
    for question in ("Are its predictions of unseen data calibrated?", "Does the belief respond to data?"):
        assert found[question] == "passed"
    assert found["Does it notice tasks unlike those it knows?"] == "note"
    assert found["Can the true task be read off the belief?"] == "passed"
    # The errors of exact inference, but for those of 100 draws' means.
    belief, exact = (value_errors(tree)[name][-1].mean() for name in ("belief", "exact"))
    assert belief == pytest.approx(exact, rel=0.1)
    page = report(tree)
    assert "What is inferred is a function" in page and "f(x0), f(x1)" in page and "implied" not in tree.attrs


def test_queries_are_none_of_the_data_seen():
    learner = Fitted(Diagonal(), Episodes())
    asked = []

    class Watching(Diagonal):
        def update(self, belief, data):
            asked.append(data.x)
            return super().update(belief, data)

    _, context = data(5, 9)
    support, query = context.rows(0, 6), context.rows(6, 9)
    predicted = predicted_after(Watching(), learner.inference.model, support, query, FAMILY.spec, draws=40)
    assert predicted.y.shape == (5, 3, 1) and torch.equal(asked[0], support.x)
    exact = FAMILY.exact.update(FAMILY.exact.init(5), support)
    law = FAMILY.exact.predictive(exact, query.x)
    assert ((predicted.mean - law.mean) / law.stddev).abs().max() < 1
    assert not (asked[0].unsqueeze(2) == query.x.unsqueeze(1)).all(-1).any()


def test_tasks_in_parts_predict_the_same(monkeypatch):
    model = Diagonal().model
    _, context = data(5, 9)
    inference = PointOf(model)
    whole = predicted_after(inference, model, context.rows(0, 6), context.rows(6, 9), FAMILY.spec, draws=40)
    monkeypatch.setattr("bayesmeta.diagnostics.unseen.ELEMENTS", 40)
    parts = predicted_after(inference, model, context.rows(0, 6), context.rows(6, 9), FAMILY.spec, draws=40)
    for name in ("y", "mask", "log_density", "mean", "aleatoric", "epistemic"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    assert parts.draws.shape == whole.draws.shape == (40, 5, 3, 1)
    assert not whole.epistemic.any() and len(whole.draws.unique()) == 600


class PointOf(nn.Module):
    """The prior's mean as a point, whatever the data."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def init(self, batch):
        return Point(self.model.prior(batch).mean)

    def update(self, belief, data):
        return belief


def test_queries_in_turns_are_shuffled_with_their_labels():
    context = Context.of(torch.arange(6.0).expand(2000, 6).unsqueeze(-1), torch.arange(6.0).expand(2000, 6)[..., None])
    found = learners.shuffled(context, torch.Generator().manual_seed(0))
    assert torch.equal(found.x, found.y) and torch.equal(found.x.sort(1).values, context.x)
    counts = found.x[:, 0, 0].long().bincount(minlength=6)
    assert ((counts - 2000 / 6) / (2000 * 5 / 36) ** 0.5).abs().max() < 5


@pytest.fixture(scope="module")
def maml_folder(tmp_path_factory):
    """A run of MAML on sinusoids, four iterations."""
    folder = tmp_path_factory.mktemp("maml") / "run"
    options = {"steps": 1, "rate": 0.01}
    config = {
        "seed": 0,
        "task": {"_target_": "bayesmeta.tasks.sinusoid.Sinusoid", "noise": 0.5, "resolution": 40},
        "algorithm": {"_target_": "bayesmeta.algorithms.maml.MAML", "_partial_": True, **options},
        "eval": {"shots": [1, 5]},
    }
    with seeded(0):
        family = Sinusoid(noise=0.5, resolution=40)
        agent = MAML(family.spec, **options)
        agent.episodes = Episodes(updates=10)
        train(
            agent,
            family,
            iterations=4,
            run_dir=folder,
            config=config,
            progress="quiet",
            tensorboard=False,
            evaluating=Evaluating(2, 10, shots=(1, 5)),
            saving=Saving(),
        )
    return folder


def test_diagnose_of_a_point_belief(maml_folder, capsys, monkeypatch):
    """File and report with a point's verdicts in plain words, and the prior that its descent stands for."""
    monkeypatch.setattr("bayesmeta.diagnostics.report.rendered", lambda draw: draw() and b"")
    assert diagnose(maml_folder, tasks=40, draws=20) is False
    tree = load(maml_folder / "diagnostics" / "results.nc")
    assert array(tree, "posterior", "z").shape == (1, 20, 6, 40, 8) and is_point(tree)
    assert "z_score" not in tree["fit_stats"].data_vars and np.isnan(array(tree, "fit_stats", "contraction")).all()
    (verdict,) = [v for v in verdicts(tree) if v.question == "Is the belief calibrated?"]
    assert verdict.outcome == "failed" and "a single value per task" in verdict.found
    assert "truths never fall in a point" in verdict.meaning and "see the answer below" in verdict.meaning
    found = outcomes(tree)
    assert not any("wider than the prior" in question for question in found)
    assert {"Are its predictions of unseen data calibrated?", "Does it notice tasks unlike those it knows?"} <= set(
        found
    )
    assert found["Does the belief respond to data?"] == "passed"
    distance = next(v for v in verdicts(tree) if v.question == "How far is it from the reference posterior?")
    assert distance.outcome == "note" and "standard deviations 0.00 times the reference's" in distance.found
    known = next(v for v in verdicts(tree) if v.question == "How well does it know the function?")
    assert "exact inference" in known.found

    printed, page = capsys.readouterr().out, (maml_folder / "diagnostics" / "report.html").read_text()
    implied = attribute(tree, "implied_prior")
    assert "1 gradient step read as the mode of a posterior" in implied and implied in printed
    assert "The prior that gradient descent stands for" in page and "directions data decide" in page
    assert "Log predictive density of unseen data after 1 data, 5 data at the last evaluation" in page
    assert "Behaviour" not in page and "nan" not in page.replace("nanoseconds", "").lower().split("<h2>how this")[0]


def test_few_tasks_are_refused(maml_folder):
    with pytest.raises(ValueError, match="tasks = 9: expected at least 10"):
        diagnose(maml_folder, tasks=9)


def test_images_are_judged_at_their_own_queries(tmp_path, unpainted):
    """Labels of an image mean something in its task only: no shared probes, nothing decoded; multiples of the ways."""
    images = torch.rand(6, 30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images += torch.arange(6.0)[:, None, None, None, None]
    family = FewShot(ImageClasses.of(list(images)), {"train": [0, 1, 2], "test": [3, 4, 5]}, ways=3)
    with seeded(0):
        learner = MAML(family.spec, network=Network(widths=(8,)), rate=0.1)
    tree = results_of(learner, family, tasks=12, draws=20)
    assert array(tree, "posterior", "context_step").tolist() == [0, 3, 6, 15, 18]
    assert array(tree, "posterior", "z").shape == (1, 20, 5, 12, 24)
    np.testing.assert_allclose(array(tree, "fit_stats", "mean").reshape(5, 12, 8, 3).sum(-1), 1, atol=1e-5)
    assert array(tree, "constant_data", "probes").shape == (12, 8, 16)
    assert not {"decoded", "prior_sbc", "distance", "exact", "ood"} & set(tree.children)
    assert array(tree, "predictive", "pit").shape == (12, 21, 3) and "confidence" in tree["predictive"].data_vars
    found = outcomes(load(save(tree, tmp_path / "images.nc")))
    assert found["Is the belief calibrated?"] == "failed" and "Are its predictions of unseen data calibrated?" in found
    page = report(tree)
    assert "p0(x0), p1(x0), p2(x0)" in page and "posterior means of all tasks lie" not in page


def test_two_classes_with_an_exact_belief(unpainted):
    """Circles: the value is the probability of class 1, and its truth the model's."""
    family = Circles(resolution=8)
    with seeded(0):
        learner = MAML(family.spec, network=Network(widths=(8,)))
    tree = results_of(learner, family, tasks=12, draws=20, shots=9)
    assert array(tree, "posterior", "context_step").tolist() == [0, 2, 4, 8]
    truth = array(tree, "constant_data", "latent_truth")
    assert (np.isclose(truth, 0.02) | np.isclose(truth, 0.98)).all() and truth.shape == (12, 8)
    assert {"decoded", "prior_sbc", "distance", "exact"} <= set(tree.children)
    assert "What is known of the function" not in report(tree)  # it is in the picture


def test_same_seed_same_results():
    learner = Fitted(Diagonal(), Episodes())
    one, same = (results_of(learner, FAMILY, tasks=10, draws=20, shots=2, seed=1) for _ in range(2))
    for group in one.children:
        assert one[group].identical(same[group]), group


@pytest.mark.gpu
def test_a_learner_on_a_gpu():
    """On the device with everything it is compared with; the same tasks, data and probes as on the CPU."""
    family = Sinusoid(resolution=30)
    with seeded(0):
        here, there = (MAML(family.spec, device=device) for device in ("cpu", "cuda"))
    there.inference.load_state_dict(here.inference.state_dict())
    trees = [results_of(learner, family, tasks=20, draws=10, device=learner.device) for learner in (here, there)]
    for group, name in (("observed_data", "y"), ("constant_data", "probes"), ("constant_data", "latent_truth")):
        np.testing.assert_allclose(*(array(tree, group, name) for tree in trees), atol=1e-5)
    np.testing.assert_allclose(*(array(tree, "fit_stats", "mean") for tree in trees), atol=1e-3)
    assert {"distance", "predictive", "ood", "exact"} <= set(trees[1].children) and "implied_prior" in trees[1].attrs
