"""Predictives against closed forms within Monte-Carlo bounds; statistical tests fail once in a thousand seeds."""

import math
import random
from collections.abc import Callable

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.special import digamma
from scipy.stats import chi2, norm
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.diagnostics import predictive as module
from bayesmeta.diagnostics.held_out import held_out, ood_auroc
from bayesmeta.diagnostics.predictive import Predictive, epistemic_score, predict, predictive_scores
from bayesmeta.diagnostics.scores import auroc, crps_normal, interval_score
from bayesmeta.inference.beliefs import FullGaussian, Point, Weighted
from bayesmeta.models.task_model import TaskModel
from bayesmeta.tasks.bernoulli_bandit import BernoulliBandit
from bayesmeta.tasks.finite_hypotheses import FiniteHypotheses
from bayesmeta.tasks.linear_gaussian import LinearGaussian
from bayesmeta.tasks.point_goal import PointGoal
from bayesmeta.types import Context
from tests.laws.sbc import p_value

ALPHA = 1e-3  # the declared failure rate of each statistical test; the seeds are fixed
DRAWS = 1000
LINEAR = LinearGaussian(dim=3, noise=0.4)
BANDIT = BernoulliBandit(arms=3)
GOALS = FiniteHypotheses(noise=1.0)


def scene(family, tasks: int = 40, shots: int = 4, queries: int = 5, seed: int = 0):
    """The exact belief after some data, and queries."""
    generator = torch.Generator().manual_seed(seed)
    params = family.sample(tasks, "test", generator)
    context, query = (family.context(params, n, generator) for n in (shots, queries))
    return family.exact.update(family.exact.init(tasks), context), query


def within(found: Tensor, exact: Tensor, error: Tensor) -> None:
    """All within their normal bounds of the exact values, ``error`` being standard errors (Bonferroni)."""
    z = norm.ppf(1 - ALPHA / (2 * exact.numel()))
    assert ((found - exact).abs() <= z * error + 1e-5).all()


@pytest.fixture(params=[1 << 22, 1], ids=["whole", "draw by draw"])
def chunks(request, monkeypatch) -> None:
    monkeypatch.setattr(module, "_ELEMENTS", request.param)


def test_gaussian_predictive(chunks) -> None:
    """Mean, variances, density, PIT and CRPS of the conjugate predictive, each with its exact standard error."""
    belief, query = scene(LINEAR)
    found = predict(belief, LINEAR.model, query, draws=DRAWS)
    law = LINEAR.exact.predictive(belief, query.x).base_dist
    noise, exact_epistemic = torch.tensor(0.4), law.variance - 0.4**2
    within(found.mean, law.mean, (exact_epistemic / DRAWS).sqrt())
    torch.testing.assert_close(found.aleatoric, torch.full_like(law.mean, 0.4**2))
    ratio = DRAWS * found.epistemic / exact_epistemic  # chi-squared
    tail = ALPHA / (2 * ratio.numel())
    assert ((chi2.ppf(tail, DRAWS - 1) < ratio) & (ratio < chi2.ppf(1 - tail, DRAWS - 1))).all()
    # E[N(y; m, s)^2] over the component means is a normal density again: the variance of the density's estimate.
    density = law.log_prob(query.y).exp()
    square = dist.Normal(law.mean, (exact_epistemic + noise**2 / 2).sqrt()).log_prob(query.y).exp()
    square = square / (2 * noise * math.sqrt(math.pi))
    within(found.log_density.exp().unsqueeze(-1), density, ((square - density**2) / DRAWS).sqrt())
    pit = law.cdf(query.y)
    within(found.pit, pit, (pit * (1 - pit) / DRAWS).sqrt())
    crps = crps_normal(law.mean.numpy(), law.stddev.numpy(), query.y.numpy()).mean((1, 2))
    error = predictive_scores(found)["crps"].tasks - crps
    assert abs(error.mean()) < norm.ppf(1 - ALPHA / 2) * error.std() / math.sqrt(len(error))


def test_bernoulli_predictive(chunks) -> None:
    """The posterior mean of the arm, and the entropies of a Beta mixture of coins in closed form."""
    belief, query = scene(BANDIT)
    found = predict(belief, BANDIT.model, query, draws=DRAWS)
    arm = query.x.argmax(-1)
    alpha, beta = belief.alpha.gather(1, arm), belief.beta.gather(1, arm)
    p, variance = alpha / (alpha + beta), alpha * beta / ((alpha + beta) ** 2 * (alpha + beta + 1))
    error = (variance / DRAWS).sqrt()
    y = query.y.squeeze(-1)
    within(found.mean.squeeze(-1), p, error)
    within(found.log_density.exp(), torch.where(y == 1, p, 1 - p), error)
    torch.testing.assert_close(found.classes.probabilities[:, :, 0, 1], found.mean.squeeze(-1))
    assert torch.equal(found.classes.labels, query.y.long())
    # Randomised: below 1 - p for a 0, above for a 1.
    u, split = found.pit.squeeze(-1), 1 - found.mean.squeeze(-1)
    assert torch.equal(u > split, y == 1)
    expected = digamma_entropy(alpha, beta)
    within(found.classes.expected_entropy.squeeze(-1), expected, torch.full_like(p, 0.5 * math.log(2) / DRAWS**0.5))
    total = dist.Bernoulli(p).entropy()
    slope = (p / (1 - p)).log().abs()  # of the entropy in p; its curvature adds the second term
    within(found.classes.entropy.squeeze(-1), total, slope * error + error**2 / (p * (1 - p)))
    information = found.classes.mutual_information
    assert (information >= -1e-6).all() and (information <= math.log(2)).all()


def digamma_entropy(alpha: Tensor, beta: Tensor) -> Tensor:
    """``E[H(p)]`` in nats for ``p ~ Beta(alpha, beta)``."""
    a, b = alpha.double().numpy(), beta.double().numpy()
    mean = a / (a + b) * (digamma(a + b + 1) - digamma(a + 1)) + b / (a + b) * (digamma(a + b + 1) - digamma(b + 1))
    return torch.as_tensor(mean, dtype=alpha.dtype)


def test_finite_predictive_is_the_weighted_sum() -> None:
    belief, query = scene(GOALS)
    found = predict(belief, GOALS.model, query, draws=DRAWS)
    weights = belief.log_weights.exp()
    laws = GOALS.model.likelihood(belief.points.transpose(0, 1).unsqueeze(-2), query)  # [H, B, N]
    density, mean = laws.log_prob(query.y).exp(), laws.mean.squeeze(-1)

    def average(values: Tensor) -> Tensor:
        return torch.einsum("bh,hbn->bn", weights, values)

    for estimate, values in ((found.log_density.exp(), density), (found.mean.squeeze(-1), mean)):
        exact = average(values)
        within(estimate, exact, ((average(values**2) - exact**2).clamp_min(0) / DRAWS).sqrt())


@pytest.mark.parametrize("family", [LINEAR, BANDIT, GOALS], ids=lambda f: f.spec.name)
def test_variances_add_up_to_that_of_the_mixture(family) -> None:
    """By hand from the same components; a Bernoulli mixture has variance ``p (1 - p)`` of its mean ``p``."""
    belief, query = scene(family)
    found = predict(belief, family.model, query, draws=50, seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        law = family.model.likelihood(belief.posterior.sample((50,)).unsqueeze(-2), query)
    second = (law.variance + law.mean**2).mean(0)
    torch.testing.assert_close(found.aleatoric + found.epistemic, second - law.mean.mean(0) ** 2, rtol=1e-4, atol=1e-5)
    if family is BANDIT:
        torch.testing.assert_close(found.aleatoric + found.epistemic, found.mean * (1 - found.mean))


class Emission(TaskModel):
    """``z ~ N(0, 1)`` and any law of ``y`` given ``z [*S, B, N, 1]``."""

    def __init__(self, law: Callable[[Tensor], Distribution]) -> None:
        super().__init__()
        self.law = law

    def prior(self, batch: int) -> Distribution:
        return dist.Normal(torch.zeros(batch, 1), 1.0).to_event(1)

    def likelihood(self, z: Tensor, data: Context) -> Distribution:
        return self.law(z.expand(*z.shape[:-2], data.size, 1))


def logits(z: Tensor) -> Tensor:
    return torch.cat([z, -z, 0.5 * z + 1], -1)


LAWS: dict[str, Callable[[Tensor], Distribution]] = {
    "normal": lambda z: dist.Normal(z, 0.5).to_event(1),
    "correlated": lambda z: dist.MultivariateNormal(z * torch.ones(2), torch.tensor([[0.5, 0.3], [0.3, 0.5]])),
    "skewed, with a cdf": lambda z: dist.LogNormal(z, 0.5).to_event(1),
    "no cdf": lambda z: dist.StudentT(5.0, z, 0.5).to_event(1),
    "counts": lambda z: dist.Poisson((1 + z).exp()).to_event(1),
    "events": lambda z: dist.Bernoulli(logits=2 * logits(z)).to_event(1),
    "classes": lambda z: dist.Categorical(logits=2 * logits(z).unsqueeze(-2)).to_event(1),
    "one-hot": lambda z: dist.OneHotCategorical(logits=2 * logits(z)),
}


def data_of(model: TaskModel, tasks: int, rows: int = 1) -> Context:
    """Targets of tasks drawn from the prior, for which the prior itself is the exact belief."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        x = torch.zeros(tasks, rows, 1)
        empty = Context.of(x, torch.zeros(tasks, rows, 1))
        y = model.likelihood(model.prior(tasks).sample().unsqueeze(-2), empty).sample().float()
    return Context.of(x, y)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_pit_is_uniform_whatever_the_likelihood(law) -> None:
    """Each coordinate; a belief that is shifted by half a standard deviation and too narrow is found in some."""
    model = Emission(law)
    data = data_of(model, 4000)
    exact = predict(model.prior(4000), model, data, draws=99).pit[:, 0].numpy()
    assert min(p_value(u) for u in exact.T) * exact.shape[1] > ALPHA
    wrong = dist.Normal(torch.full((4000, 1), 0.5), 0.5).to_event(1)
    shifted = predict(wrong, model, data, draws=99).pit[:, 0].numpy()
    assert min(p_value(u) for u in shifted.T) * shifted.shape[1] < ALPHA


@pytest.mark.parametrize("law", ["no cdf", "counts"])
def test_ranks_among_few_draws_are_spread_evenly(law) -> None:
    model = Emission(LAWS[law])
    pit = predict(model.prior(4000), model, data_of(model, 4000), draws=3).pit.flatten().numpy()
    assert p_value(pit) > ALPHA
    assert len(np.unique(pit)) > 3900 and pit.min() > 0 and pit.max() < 1


POWER = 1 / 0.9**2


def test_exact_inference_predicts_with_calibration_and_ten_percent_overconfidence_is_found() -> None:
    """One query a task, since those of a task depend on one another; little noise, so that the belief matters."""
    family = LinearGaussian(dim=3, noise=0.2)
    belief, query = scene(family, tasks=4000, shots=2, queries=1)
    narrow = FullGaussian(belief.information * POWER, belief.precision * POWER)
    right, wrong = (predict(b, family.model, query, draws=199) for b in (belief, narrow))
    assert p_value(right.pit.flatten().numpy()) > ALPHA > p_value(wrong.pit.flatten().numpy())
    good, bad = predictive_scores(right), predictive_scores(wrong)
    assert good["rmsce"].value < bad["rmsce"].value and bad["spread_skill"].value < good["spread_skill"].value
    assert bad["coverage_80"].value < good["coverage_80"].value and good["nll"].value < bad["nll"].value


@pytest.mark.parametrize("family", [BANDIT, GOALS], ids=lambda f: f.spec.name)
def test_other_exact_predictives_are_calibrated(family) -> None:
    belief, query = scene(family, tasks=4000, shots=5, queries=1)
    assert p_value(predict(belief, family.model, query, draws=199).pit.flatten().numpy()) > ALPHA


def test_densities_are_averaged_and_not_their_logarithms() -> None:
    """Two hypotheses far apart, of which the draws hold a known share each."""
    model = Emission(LAWS["normal"])
    points = torch.tensor([[[-3.0], [3.0]]])
    found = predict(Weighted(points, torch.zeros(1, 2), torch.zeros(1)), model, data_of(model, 1), draws=100)
    share = (found.mean / 3 + 1) / 2  # at 3
    assert 0.2 < share < 0.8
    near, far = (dist.Normal(mean, 0.5).log_prob(found.y).exp() for mean in (3.0, -3.0))
    torch.testing.assert_close(found.log_density.exp().unsqueeze(-1), share * near + (1 - share) * far)
    torch.testing.assert_close(found.epistemic, 36 * share * (1 - share))


def test_a_point_belief_has_no_epistemic_part() -> None:
    for law in ("normal", "classes"):
        model = Emission(LAWS[law])
        data = data_of(model, 3, rows=2)
        z = torch.tensor([[0.3], [-1.0], [2.0]])
        found = predict(Point(z), model, data, draws=7)
        torch.testing.assert_close(found.log_density, model.likelihood(z.unsqueeze(-2), data).log_prob(data.y))
        torch.testing.assert_close(epistemic_score(found), torch.zeros(3, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_a_task_where_the_belief_is_lost_leaves_the_others_alone(law, chunks) -> None:
    model = Emission(law)
    data = data_of(model, 3, rows=2)
    whole, broken = (predict(Point(torch.tensor([[0.3], [z], [2.0]])), model, data, draws=3) for z in (1.0, torch.nan))
    spread = dist.Normal(torch.zeros(3, 1), torch.tensor([[1.0], [torch.nan], [1.0]]), validate_args=False).to_event(1)
    assert predict(spread, model, data, draws=3).log_density.isnan().all(1).tolist() == [False, True, False]
    for name in ("log_density", "pit", "mean", "aleatoric", "epistemic"):
        value, expected = getattr(broken, name), getattr(whole, name)
        assert value[1].isnan().all()
        if name != "pit":  # which is drawn at random where the cdf jumps
            torch.testing.assert_close(value[::2], expected[::2], equal_nan=True)
    assert broken.draws[:, 1].isnan().all() and not broken.draws[:, ::2].isnan().any()
    if whole.classes is not None:
        assert broken.classes.probabilities[1].isnan().all() and broken.classes.mutual_information[1].isnan().all()
        torch.testing.assert_close(broken.classes.probabilities[::2], whole.classes.probabilities[::2])


def test_classes_by_hand() -> None:
    """Categorical and one-hot targets are the same; information is what averaging adds to the entropy."""
    one_hot, classes = Emission(LAWS["one-hot"]), Emission(LAWS["classes"])
    coded = data_of(one_hot, 30, rows=4)
    numbered = Context.of(coded.x, coded.y.argmax(-1, keepdim=True).float())
    a, b = predict(one_hot.prior(30), one_hot, coded), predict(classes.prior(30), classes, numbered)
    torch.testing.assert_close(a.log_density, b.log_density)
    assert torch.equal(a.classes.labels, b.classes.labels)
    assert a.y.shape == (30, 4, 3) and a.pit.shape == b.pit.shape == (30, 4, 1) and b.mean.isnan().all()
    torch.testing.assert_close(a.mean, a.classes.probabilities.squeeze(-2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        law = one_hot.likelihood(one_hot.prior(30).sample((200,)).unsqueeze(-2), coded)
    entropy = torch.distributions.Categorical(law.probs.mean(0)).entropy()
    torch.testing.assert_close(a.classes.entropy.squeeze(-1), entropy)
    torch.testing.assert_close(a.classes.mutual_information.squeeze(-1), entropy - law.entropy().mean(0))
    torch.testing.assert_close(b.classes.mutual_information, a.classes.mutual_information)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_chunks_change_nothing_but_the_order_of_draws(law, monkeypatch) -> None:
    model = Emission(law)
    data = data_of(model, 5, rows=3)
    whole = predict(model.prior(5), model, data, draws=30)
    monkeypatch.setattr(module, "_ELEMENTS", 4 * data.y.numel())
    parts = predict(model.prior(5), model, data, draws=30)
    for name in ("log_density", "mean", "aleatoric", "epistemic"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), equal_nan=True)
    assert parts.draws.shape == whole.draws.shape == (30, *data.y.shape)
    if whole.classes is not None:
        torch.testing.assert_close(parts.classes.probabilities, whole.classes.probabilities)
        torch.testing.assert_close(parts.classes.expected_entropy, whole.classes.expected_entropy)


def padded(query: Context, filler: float) -> Context:
    """Two more rows for every task, none of them real, and none at all for task 1."""
    more = torch.full((query.batch, 2, 1), filler)
    mask = torch.cat([query.mask, torch.zeros(query.batch, 2, dtype=torch.bool)], 1)
    mask[1] = False
    x, y = (torch.cat([v, more.expand(-1, -1, v.shape[-1])], 1) for v in (query.x, query.y))
    return Context(x, y, mask)


@pytest.mark.parametrize("family", [LINEAR, BANDIT], ids=lambda f: f.spec.name)
def test_padding_changes_nothing(family) -> None:
    """Whatever it holds, to the bit; its presence only moves the random stream."""
    belief, query = scene(family, tasks=6)
    a, b = (predict(belief, family.model, padded(query, filler), draws=60) for filler in (math.nan, 7.0))
    for name in ("log_density", "pit", "mean", "epistemic", "draws"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    without = predict(belief, family.model, query, draws=60)
    real = a.mask[:, :-2]
    for name in ("log_density", "mean", "aleatoric", "epistemic"):
        torch.testing.assert_close(getattr(a, name)[:, :-2][real], getattr(without, name)[real])
    found, same = predictive_scores(a), predictive_scores(b)
    for name, score in found.items():
        assert score.value == same[name].value and np.isnan(score.tasks[1])
        assert np.isfinite(np.delete(score.tasks, 1)).all()
    np.testing.assert_allclose(found["nll"].value, -without.log_density[real].mean(), rtol=1e-5)


def test_padding_may_lie_outside_the_support() -> None:
    model = Emission(LAWS["skewed, with a cdf"])
    query = padded(data_of(model, 3), 0.0)  # a log-normal target is positive
    assert predict(model.prior(3), model, query).log_density.isfinite().all()


@pytest.mark.parametrize("family", [LINEAR, BANDIT], ids=lambda f: f.spec.name)
def test_scores_of_all_are_the_means_of_the_tasks(family) -> None:
    belief, query = scene(family)
    found = predictive_scores(predict(belief, family.model, query))
    noted = {"rmsce", "spread_skill", "ece", "mce", "ece_equal_mass", "mce_equal_mass"}
    for name in found.keys() - noted:
        assert found[name].value == pytest.approx(found[name].tasks.mean(), rel=1e-5)
    assert all(score.tasks.shape == (40,) for score in found.values())
    numeric = {"crps", "aleatoric_sd", "epistemic_sd", "spread_skill", *(f"interval_score_{p}" for p in (50, 80, 95))}
    assert (numeric <= found.keys()) == (family is LINEAR)


def test_intervals_lie_between_the_order_statistics_that_hold_as_much() -> None:
    """A 40th draw falls within 39 with probability 38/40 = 95 %, between the 4th and the 36th with 32/40 = 80 %."""
    belief, query = scene(LINEAR)
    found = predict(belief, LINEAR.model, query, draws=39)
    draws, y = found.draws.sort(0).values.double().numpy(), found.y.double().numpy()
    score = predictive_scores(found)
    for level, low, high in ((0.95, draws[0], draws[38]), (0.8, draws[3], draws[35]), (0.5, draws[9], draws[29])):
        expected = interval_score(low, high, y, level).mean()
        assert score[f"interval_score_{100 * level:.0f}"].value == pytest.approx(expected, rel=1e-5)


def test_scores_of_the_exact_predictive_beat_those_of_the_prior() -> None:
    for family in (LINEAR, BANDIT, GOALS):
        belief, query = scene(family, tasks=300)
        exact, prior = (predictive_scores(predict(b, family.model, query)) for b in (belief, family.exact.init(300)))
        for name in {"nll", "crps", "interval_score_80", "brier"} & exact.keys():
            gain = prior[name].tasks - exact[name].tasks
            assert gain.mean() > norm.ppf(1 - ALPHA) * gain.std() / math.sqrt(300), (family.spec.name, name)


def test_events_are_scored_as_events_and_classes_as_classes() -> None:
    """Against numbers made by hand from the record."""
    for name in ("events", "classes", "one-hot"):
        model = Emission(LAWS[name])
        found = predict(model.prior(50), model, data_of(model, 50, rows=4))
        p, labels = found.classes.probabilities, found.classes.labels
        score = predictive_scores(found)
        truth = torch.nn.functional.one_hot(labels, p.shape[-1])
        share = 2 if name == "events" else 1  # of an event only one of the two classes counts
        assert score["brier"].value == pytest.approx(float((p - truth).square().sum(-1).mean()) / share, rel=1e-5)
        assert score["accuracy"].value == pytest.approx(float((p.argmax(-1) == labels).float().mean()))
        assert score["nll"].value == pytest.approx(-float(found.log_density.mean()), rel=1e-5)
        assert 0 <= score["ece"].value <= score["mce"].value <= 1


def states() -> tuple:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_seeds_decide_and_the_global_stream_is_left_alone() -> None:
    before = states()
    first, again = (held_out(LINEAR, LINEAR.exact, tasks=5, draws=20, seed=1) for _ in range(2))
    other = held_out(LINEAR, LINEAR.exact, tasks=5, draws=20, seed=2)
    ood_auroc(BANDIT, BANDIT.exact, tasks=5, draws=20)
    assert states() == before
    assert torch.equal(first.draws, again.draws) and torch.equal(first.pit, again.pit)
    assert not torch.equal(first.y, other.y)


def test_held_out_data_are_fresh_and_the_same_for_every_procedure() -> None:
    """The prior in place of inference meets the same queries; without shots the two are the same."""
    seen = []

    class Watching:
        init = staticmethod(LINEAR.exact.init)

        def update(self, belief, data: Context):
            seen.append(data)
            return belief

    exact, prior = (held_out(LINEAR, i, shots=3, queries=4, tasks=6) for i in (LINEAR.exact, Watching()))
    assert exact.y.shape == (6, 4, 1) and exact.draws.shape == (200, 6, 4, 1)
    assert torch.equal(exact.y, prior.y) and not torch.equal(exact.mean, prior.mean)
    assert seen[0].y.shape == (6, 3, 1) and not torch.isin(seen[0].y, exact.y).any()
    blank = [held_out(LINEAR, i, shots=0, tasks=6, model=LINEAR.model) for i in (LINEAR.exact, Watching())]
    assert torch.equal(blank[0].draws, blank[1].draws) and len(seen) == 1


def test_epistemic_variance_of_a_linear_gaussian_model_is_blind_to_targets() -> None:
    """The same inputs with any targets give the same score, so that no ordering of two sets of tasks is possible."""
    generator = torch.Generator().manual_seed(0)
    params = LINEAR.sample(50, "test", generator)
    context, query = (LINEAR.context(params, n, generator) for n in (4, 5))

    def scores_of(data: Context) -> np.ndarray:
        belief = LINEAR.exact.update(LINEAR.exact.init(50), data)
        return epistemic_score(predict(belief, LINEAR.model, query)).mean(1).double().numpy()

    usual, absurd = scores_of(context), scores_of(Context.of(context.x, 5.0 * context.y + 3.0))
    np.testing.assert_allclose(absurd, usual, rtol=1e-4)
    # Each task has its own twin, and which of two equal numbers is larger by round-off counts 1 / 50^2.
    assert abs(auroc(usual, absurd).value - 0.5) <= 0.5 / 50


def test_surprise_sees_what_epistemic_variance_cannot() -> None:
    """``ood`` weights are three times as large; the bounds are widened from 95 % to the declared failure rate."""
    found = ood_auroc(LINEAR, LINEAR.exact, shots=8, tasks=200, draws=100)
    assert list(found) == ["epistemic", "context_surprise", "query_surprise"]
    wider = norm.ppf(1 - ALPHA / 2) / norm.ppf(0.975)
    blind = found["epistemic"]
    assert abs(blind.value - 0.5) < wider * (blind.high - blind.low) / 2
    assert found["context_surprise"].low > 0.5


def test_goals_outside_the_list_surprise() -> None:
    family = FiniteHypotheses(noise=0.3)
    found = ood_auroc(family, family.exact, shots=6, tasks=200, draws=100)
    assert found["query_surprise"].low > 0.5 and found["context_surprise"].low > 0.5


def test_training_tasks_are_not_out_of_distribution() -> None:
    class Sham(LinearGaussian):
        def sample(self, n, split, generator):
            return super().sample(n, "test", generator)

    family = Sham(dim=3)
    wider = norm.ppf(1 - ALPHA / 6) / norm.ppf(0.975)
    for name, found in ood_auroc(family, family.exact, tasks=200, draws=100).items():
        assert abs(found.value - 0.5) < wider * (found.high - found.low) / 2, name


class Unknown:
    """A family without a model."""

    spec, sample, context = LINEAR.spec, LINEAR.sample, LINEAR.context


def broken(law: Callable[[Tensor], Distribution]) -> Predictive:
    model = Emission(law)
    return predict(model.prior(3), model, Context.of(torch.zeros(3, 2, 1), torch.zeros(3, 2, 1)))


def test_what_is_refused() -> None:
    belief, query = scene(LINEAR, tasks=3)
    nothing = Context(query.x, query.y, torch.zeros_like(query.mask))
    bad = Context.of(query.x, query.y.index_fill(0, torch.tensor([2]), torch.nan))
    calls: dict[str, Callable[[], object]] = {
        "at least 1 posterior draw, got 0": lambda: predict(belief, LINEAR.model, query, draws=0),
        r"batch \(2,\) and event \(3,\), got \(3,\) and \(3,\); pass the queries of the same tasks": lambda: predict(
            belief, LINEAR.model, Context.of(query.x[:2], query.y[:2])
        ),
        r"event \(2,\), got \(3,\) and \(3,\); .* the model whose latent": lambda: predict(belief, GOALS.model, query),
        "at least one real query datum, got none": lambda: predict(belief, LINEAR.model, nothing),
        "finite data, got a NaN or an infinity in 5 rows, the first being row 0 of task 2": lambda: predict(
            belief, LINEAR.model, bad
        ),
        r"batch \(200, 3, 2\) and event \(1,\), got \(200, 3, 2, 1\) and \(\)": lambda: broken(
            lambda z: dist.Normal(z, 1.0)
        ),
        r"got \(3, 2\) and \(1,\); let it depend on z": lambda: broken(
            lambda z: dist.Normal(0 * z[0], 1.0).to_event(1)
        ),
        r"linear_gaussian-v1 has no model of its own; give model=": lambda: held_out(Unknown(), LINEAR.exact),
        "expected a supervised family, got point_goal": lambda: held_out(PointGoal(), LINEAR.exact),
        "at least 1 shot": lambda: ood_auroc(LINEAR, LINEAR.exact, shots=0),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message):
            call()
