"""From rollouts and contexts to results: prefixes, draws, densities, and procedures of a user's own."""

from itertools import pairwise

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bayesmeta.diagnostics import export
from bayesmeta.diagnostics.export import context_sizes, inference_kind, results_from
from bayesmeta.diagnostics.results import array, validate
from bayesmeta.evaluate import evaluate
from bayesmeta.inference.mcmc import NUTS
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.types import Context


@pytest.mark.parametrize(
    "size, ends, expected",
    [
        (60, [20, 40, 60], (0, 1, 2, 5, 10, 20, 40, 60)),
        (600, [200, 400, 600], (0, 1, 2, 5, 10, 20, 50, 100, 200, 400, 600)),
        (17, [8, 15, 17], (0, 1, 2, 5, 8, 15, 17)),  # later episodes ended early in every task
        (5, [5], (0, 1, 2, 5)),
        (10, [], (0, 1, 2, 5, 10)),
        (30, [], (0, 1, 2, 5, 10, 20, 30)),
        (0, [], (0,)),
    ],
)
def test_context_sizes(size, ends, expected):
    assert context_sizes(size, ends) == expected


@given(lengths=st.lists(st.integers(1, 1000), max_size=6))
def test_context_sizes_increase_from_nothing_to_everything(lengths):
    ends = np.cumsum(lengths).tolist()
    size = ends[-1] if ends else 700
    sizes = context_sizes(size, ends)
    assert sizes[0] == 0 and sizes[-1] == size and set(ends) <= set(sizes)
    assert all(a < b for a, b in pairwise(sizes))


def test_beliefs_at_episode_ends_are_those_of_the_trial(trial):
    """Prefixes through the procedure, against the beliefs that the agent had as it acted."""
    family, agent, tree = trial
    params = torch.as_tensor(np.stack([array(tree, "constant_data", f"{n}_true") for n in family.spec.param_names], -1))
    rollout = evaluate(agent, family, params, episodes=2, seed=3)
    tree = results_from(rollout, params, agent.inference, family.spec, draws=2)
    for k, belief in enumerate(rollout.beliefs):
        found = tree["fit_stats"].to_dataset().sel(context_step=8 * k)
        np.testing.assert_allclose(found["mean"], belief.posterior.mean.detach(), atol=1e-5)
        np.testing.assert_allclose(found["sd"], belief.posterior.stddev.detach(), atol=1e-5)
    np.testing.assert_array_equal(array(tree, "trajectory", "return"), rollout.returns)
    assert tree["trajectory"]["episode_of_t"].values.tolist() == [1] * 8 + [2] * 8
    np.testing.assert_array_equal(array(tree, "trajectory", "latent"), rollout.latents.detach())


def test_draws_are_of_the_posterior(gaussian):
    """Moments of 2000 draws against the exact ones: each z-score is N(0, 1), and 5 is never reached by chance."""
    family, params, context, _ = gaussian
    tree = results_from(context, params, family.exact, family.spec, draws=2000)
    z, stats = array(tree, "posterior", "z")[0], tree["fit_stats"].to_dataset()
    score = (z.mean(0) - stats["mean"].values) / (stats["sd"].values / 2000**0.5)
    ratio = z.var(0) / stats["sd"].values ** 2
    assert np.abs(score).max() < 5 and np.abs(ratio - 1).max() < 5 * (2 / 2000) ** 0.5
    prior = array(tree, "prior", "z")
    assert abs(prior.mean()) < 0.02 and abs(prior.std() - 1.5) < 0.02


def test_densities_are_those_of_the_draws(gaussian):
    """Bayes' rule per draw: log joint - log q is the log evidence, the same for every draw of a task."""
    family, _, context, tree = gaussian
    stats = tree["sample_stats"].to_dataset()
    evidence = (stats["lp"] - stats["log_q"]).to_numpy()[0]
    np.testing.assert_allclose(evidence, np.broadcast_to(evidence.mean(0), evidence.shape), atol=2e-3)
    posterior = family.exact.update(family.exact.init(60), context).posterior
    z = torch.as_tensor(array(tree, "posterior", "z")[0, :, -1])
    np.testing.assert_allclose(stats["log_q"][0, :, -1], posterior.log_prob(z), atol=1e-4)


def test_the_same_seed_gives_the_same_draws_and_no_global_state_moves(gaussian):
    family, params, context, tree = gaussian
    before = torch.random.get_rng_state()
    again = results_from(context, params, family.exact, family.spec, model=family.model, draws=50)
    other = results_from(context, params, family.exact, family.spec, model=family.model, draws=50, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert again["posterior"].identical(tree["posterior"])
    assert not other["posterior"].equals(tree["posterior"]) and other["fit_stats"].equals(tree["fit_stats"])


def test_a_few_tasks_at_a_time_is_the_same(gaussian, monkeypatch):
    family, params, context, tree = gaussian
    monkeypatch.setattr(export, "_ROWS", 70)
    chunked = results_from(context, params, family.exact, family.spec, draws=50)
    np.testing.assert_allclose(array(chunked, "fit_stats", "kl"), array(tree, "fit_stats", "kl"), rtol=1e-5, atol=1e-5)
    assert array(chunked, "posterior", "z").shape == array(tree, "posterior", "z").shape


def test_padding_is_counted_out(gaussian):
    family, params, context, _ = gaussian
    mask = context.mask.clone()
    mask[0, 3:] = False
    tree = results_from(Context(context.x, context.y, mask), params, family.exact, family.spec, draws=2)
    counts = array(tree, "fit_stats", "n_context")
    assert counts[-1, 0] == 3 and counts[-1, 1] == 10
    assert tree["observed_data"].sizes["obs"] == mask.sum()
    first = tree["constant_data"].to_dataset()
    own = first["task_of_obs"].to_numpy() == 0
    np.testing.assert_array_equal(first["x"].to_numpy()[own], context.x[0, :3])
    assert first["step_of_obs"].to_numpy()[own].tolist() == [0, 1, 2]


class Counting:
    """A user's own procedure: no module, no base class, a belief of its own, and no use for empty data."""

    def init(self, batch):
        return CountingBelief(torch.zeros(batch))

    def update(self, belief, data):
        assert data.size > 0
        return CountingBelief(belief.count + data.mask.sum(1))


class CountingBelief:
    def __init__(self, count):
        self.count = count

    @property
    def posterior(self):
        sd = (1 + self.count).rsqrt().unsqueeze(-1)
        return dist.Laplace(torch.zeros_like(sd), sd).to_event(1)


def test_a_users_own_procedure(gaussian):
    family, params, context, _ = gaussian
    tree = results_from(context, params, Counting(), family.spec, draws=20)
    validate(tree)
    contraction = array(tree, "fit_stats", "contraction")[:, 0, 0]
    np.testing.assert_allclose(contraction, 1 - 1 / (1 + np.array([0, 1, 2, 5, 10])), rtol=1e-5, atol=1e-7)
    assert tree.attrs["inference"] == "Counting" and tree.attrs["inference_kind"] == "exact"


def test_grids_are_results_too():
    """A belief of weighted cells, whose density is compared with every draw in portions."""
    family = Sinusoid(resolution=30)
    generator = torch.Generator().manual_seed(0)
    params = family.sample(4, "test", generator)
    tree = results_from(family.context(params, 5, generator), params, family.exact, family.spec, draws=30)
    validate(tree)
    assert np.isfinite(array(tree, "sample_stats", "log_q")).all()
    assert (np.diff(array(tree, "fit_stats", "kl_total").mean(1)) > 0).all()


def test_kinds(trial, gaussian):
    family = gaussian[0]
    assert inference_kind(trial[1].inference) == "amortised"
    assert inference_kind(family.exact) == "exact"
    assert inference_kind(NUTS(family.model, x_dim=2, y_dim=1)) == "mcmc"


def test_what_does_not_fit_is_refused(gaussian):
    family, params, context, _ = gaussian
    with pytest.raises(ValueError, match=r"expected parameters \[60, 2\] for the tasks of the data, got \(59, 2\)"):
        results_from(context, params[1:], family.exact, family.spec)
    for sizes in ([1, 5], [0, 5, 2], [0, 11]):
        with pytest.raises(ValueError, match=r"sizes that begin with 0, increase and end by 10 rows, got \["):
            results_from(context, params, family.exact, family.spec, sizes=sizes)
