"""Decoding the task from the belief: closed forms, held-out honesty, and the exact posterior as the limit."""

import numpy as np
import pytest
import torch
import xarray as xr

from bayesmeta.diagnostics import decoding
from bayesmeta.diagnostics.calibration import ALPHA, calibration
from bayesmeta.diagnostics.decoding import (
    cross_fitted,
    decode,
    decoded_ranks,
    decoder,
    exact_curve,
    probe,
    squared_errors,
)
from bayesmeta.diagnostics.export import results_from
from bayesmeta.diagnostics.intervals import bootstrap_interval
from bayesmeta.diagnostics.truth import exact_posterior, reference_returns
from bayesmeta.diagnostics.uniformity import holm
from bayesmeta.tasks.linear_gaussian import LinearGaussian
from bayesmeta.tasks.normal_normal import NormalNormal
from bayesmeta.tasks.point_goal import PointGoal
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.types import Context


def test_leave_one_out_error_is_exact():
    """The closed form against refitting without each row, at the penalty that was chosen."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(25, 4)), rng.normal(size=(25, 2))
    error, _ = decoding._ridge(x, y)

    def refitted(penalty: float) -> float:
        z = (x - x.mean(0)) / x.std(0)
        errors = []
        for i in range(len(x)):
            keep = np.arange(len(x)) != i
            design = np.column_stack([np.ones(len(x)), z])
            gram = design[keep].T @ design[keep] + penalty * np.diag([0, *[1.0] * 4])
            errors.append(y[i] - design[i] @ np.linalg.solve(gram, design[keep].T @ y[keep]))
        return float((np.array(errors) ** 2).mean())

    assert error == pytest.approx(min(map(refitted, decoding._PENALTIES)), rel=1e-8)


def test_a_linear_map_is_found():
    rng = np.random.default_rng(0)
    x, a = rng.normal(size=(50, 3)), rng.normal(size=(3, 2))
    np.testing.assert_allclose(cross_fitted(x, x @ a + 1.0), x @ a + 1.0, atol=1e-3)


def test_a_quadratic_map_is_found():
    x = np.random.default_rng(0).normal(size=(80, 2))
    y = np.column_stack([x[:, 0] * x[:, 1], x[:, 0] ** 2])
    np.testing.assert_allclose(cross_fitted(x, y), y, atol=1e-2)


def test_noise_predicts_nothing():
    """Features without information give the mean of the other tasks: no variance is explained, and none is invented."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 8)), rng.normal(size=(200, 1))
    explained = 1 - ((cross_fitted(x, y) - y) ** 2).mean() / y.var()
    assert -0.1 < explained < 0.05


def test_a_task_is_not_judged_by_a_probe_fitted_on_it():
    """Twenty tasks seen five times each with a random code: within a fold split by rows they would be remembered."""
    rng = np.random.default_rng(0)
    task = np.tile(np.arange(20), 5)
    codes, truth = rng.normal(size=(20, 19)), rng.normal(size=(20, 1))
    explained = 1 - ((cross_fitted(codes[task], truth[task]) - truth[task]) ** 2).mean() / truth.var()
    assert explained < 0.3
    by_rows = probe(codes[task][:80], truth[task][:80])(codes[task][80:])
    assert 1 - ((by_rows - truth[task][80:]) ** 2).mean() / truth.var() > 0.9  # the leak that is prevented


def test_two_different_tasks_are_enough():
    """Forward and backward: held out by rows, for no fold can be without one of them."""
    truth = np.tile([[1.0], [-1.0]], (20, 1))
    np.testing.assert_allclose(cross_fitted(2 * truth, truth), truth, atol=1e-2)


def test_constant_features_are_no_division_by_zero():
    y = np.random.default_rng(0).normal(size=(20, 1))
    predicted = cross_fitted(np.ones((20, 3)), y)
    assert np.isfinite(predicted).all() and abs(predicted.mean() - y.mean()) < 0.1


def test_too_few_tasks_are_refused():
    with pytest.raises(ValueError, match=r"at least 10 tasks for 5 folds, got 9"):
        cross_fitted(np.zeros((9, 1)), np.zeros((9, 1)))


def test_the_conjugate_posterior_is_decoded_to_its_own_standard_deviation():
    """Its mean is the best predictor, so that RMSE(n)^2 = E tr Cov(z | n data): known in closed form."""
    family = NormalNormal(prior_scale=1.5, noise=0.5)
    generator = torch.Generator().manual_seed(0)
    params = family.sample(400, "test", generator)
    context = family.context(params, 5, generator)
    tree = results_from(context, params, family.exact, family.spec, draws=2)
    tree["decoded"] = decode(tree)
    tree["exact"] = exact_curve(family.exact, context, tree)
    for group in ("decoded", "exact"):
        low, high = bootstrap_interval(squared_errors(tree, group).T, level=0.999)
        for c, n in enumerate(tree["posterior"]["context_step"].values):
            assert low[c] < 1 / (1 / 1.5**2 + n / 0.5**2) < high[c]


def test_exact_curve_is_the_posterior_of_each_prefix(gaussian):
    family, _, context, tree = gaussian
    for c, n in enumerate(tree["posterior"]["context_step"].values.tolist()):
        posterior = family.exact.update(family.exact.init(60), context.rows(0, n)).posterior
        np.testing.assert_allclose(tree["exact"]["mean"].values[c], posterior.mean, atol=1e-4)
        np.testing.assert_allclose(tree["exact"]["sd"].values[c], posterior.stddev, atol=1e-4)


def test_exact_curve_in_chunks_is_the_same(gaussian, monkeypatch):
    family, _, context, tree = gaussian
    monkeypatch.setattr(decoding, "_ROWS", 70)
    assert exact_curve(family.exact, context, tree).equals(tree["exact"].to_dataset())


def test_decoder_reads_a_latent(gaussian):
    """The latent of an exact procedure is the parameter itself, up to what is still unknown of it."""
    _, _, _, tree = gaussian
    z = np.array([[0.5, -0.5], [1.0, 1.0]])
    np.testing.assert_allclose(decoder(tree)(z), z, atol=0.15)


def test_point_goal_knows_its_posterior():
    """Three rewards from corners of a triangle leave one goal; one reward leaves a ring around it."""
    family = PointGoal()
    exact = exact_posterior(family)
    goal = torch.tensor([[0.313, -0.457]])
    obs = torch.tensor([[[0.0, 0.0], [0.8, 0.1], [-0.3, 0.7]]])
    x = torch.cat([obs, torch.zeros_like(obs)], -1)
    y = -(obs - goal.unsqueeze(1)).norm(dim=-1, keepdim=True)
    ring = exact.update(exact.init(1), Context.of(x[:, :1], y[:, :1])).posterior
    point = exact.update(exact.init(1), Context.of(x, y)).posterior
    torch.testing.assert_close(point.mean, goal, atol=0.01, rtol=0)
    assert point.stddev.max() < 0.02 and ring.stddev.min() > 0.2


def test_sparse_point_goal_rules_out_where_it_has_been():
    family = PointGoal(sparse=True)
    exact = exact_posterior(family)
    here = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    nothing = exact.update(exact.init(1), Context.of(here, torch.zeros(1, 1, 1)))
    weights = nothing.log_weights.exp()[0]
    distance = (nothing.points[0] - here[0, 0, :2]).norm(dim=-1)
    assert weights[distance <= 0.2].sum() < 1e-6
    kept = weights[distance > 0.2]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / len(kept)))


class Unknown:
    """A family that knows nothing of itself."""

    spec = PointGoal().spec

    def sample(self, n, split, generator):
        return torch.zeros(n, 2)


def test_families_say_what_they_know():
    assert exact_posterior(Sinusoid(resolution=10)) is not None
    assert exact_posterior(LinearGaussian(dim=2)) is not None
    unknown = Unknown()
    assert exact_posterior(unknown) is None
    assert reference_returns(unknown, torch.zeros(1, 2), episodes=1, seed=0) == {}


@pytest.mark.parametrize("sparse", [False, True])
def test_posterior_sampling_with_exact_inference_finds_the_goal(sparse):
    """Where one episode shows the goal, as a dense reward does, its second is the oracle's but for its starts."""
    family = PointGoal(sparse=sparse)
    goals = family.sample(20, "test", torch.Generator().manual_seed(0))
    before = torch.random.get_rng_state()
    found, again = (reference_returns(family, goals, episodes=3, seed=1) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert set(found) == {"oracle", "still", "thompson"} and found["thompson"].shape == (20, 3)
    assert torch.equal(found["thompson"], again["thompson"])
    mean, oracle = found["thompson"].mean(0), float(found["oracle"].mean())
    if sparse:  # it searches: the goal is among a hundred directions
        assert mean[0] < 0.5 * oracle
    else:
        assert mean[0] < 3 * oracle and abs(float(mean[2]) / oracle - 1) < 0.35


def linear_agent(width: float, tasks: int = 400, draws: int = 100):
    """Results of beliefs over a latent that is a rotation of a two-dimensional task, wide as ``width`` says.

    The task is standard normal, seen with noise of standard deviation 1, 0.3 and 0.02 after 1, 5 and 200 data; the
    beliefs have the right means, and ``width`` times the right standard deviations.
    """
    random = np.random.default_rng(0)
    rotation = np.linalg.qr(random.normal(size=(2, 2)))[0]
    truth = random.normal(size=(tasks, 2))
    noise = np.array([1.0, 0.3, 0.02])[:, None, None]
    means = (truth + noise * random.normal(size=(3, tasks, 2))) / (1 + noise**2)
    z = means + width * noise / np.sqrt(1 + noise**2) * random.normal(size=(draws, 3, tasks, 2))
    steps, names = [1, 5, 200], [f"task_{b}" for b in range(tasks)]
    dims = ("context_step", "task", "latent_dim")
    coordinates = {"context_step": steps, "task": names}
    return xr.DataTree.from_dict(
        {
            "/posterior": xr.Dataset({"z": (("chain", "draw", *dims), (z @ rotation)[None])}, coordinates),
            "/fit_stats": xr.Dataset({"mean": (dims, means @ rotation)}, coordinates),
            "/constant_data": xr.Dataset({f"{n}_true": ("task", truth[:, i]) for i, n in enumerate("ab")}),
        }
    )


@pytest.mark.parametrize("width, calibrated", [(1.0, True), (0.5, False), (2.0, False)])
def test_calibration_of_what_is_decoded(width, calibrated):
    """The exact posterior is calibrated; one half and one twice as wide are not."""
    sbc = decoded_ranks(linear_agent(width))
    assert sbc["decoded"].dims == ("chain", "draw", "context_step", "param")
    assert sbc["context_step"].to_numpy().tolist() == [1, 5]  # after 200 data the probe's own error would be judged
    p = calibration(sbc)["p_value"].to_numpy()
    assert holm(p, ALPHA).any() != calibrated
    outside = (np.abs(sbc["decoded"].to_numpy() - 0.5) > 0.45).mean()
    assert (outside > 0.2) == (width < 1) and (outside < 0.03) == (width > 1)


def test_nothing_is_ranked_where_nothing_can_be_decoded():
    tree = linear_agent(1.0)
    noise = np.random.default_rng(1).normal(size=tree["fit_stats"]["mean"].shape)
    tree["fit_stats"] = tree["fit_stats"].to_dataset().assign(mean=(tree["fit_stats"]["mean"].dims, noise))
    assert decoded_ranks(tree) is None
