"""ALPaCA: the loss is the exact predictive's, and learning prior and noise finds those of the family."""

import copy
from importlib.resources import files

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from bayesmeta.algorithms.alpaca import ALPaCA
from bayesmeta.config import without_schema
from bayesmeta.diagnostics.held_out import held_out, prediction_scores
from bayesmeta.diagnostics.predictive import predictive_scores
from bayesmeta.episodic import Episodes
from bayesmeta.inference.linear_head import LinearHead
from bayesmeta.inference.predictive import log_predictive, per_datum
from bayesmeta.models.architectures import Network
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.tasks.linear_gaussian import LinearGaussian
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.train import seeded
from bayesmeta.types import Algorithm, Spec, map_tensors

SMALL = Episodes(meta_batch=4, shots=5, least_shots=0, queries=6, updates=2)


def learner(**options: object) -> ALPaCA:
    with seeded(0):
        family = Sinusoid()
        agent = ALPaCA(
            family.spec,
            **({"network": Network(widths=(8,), activation="tanh"), "features": 4, "episodes": SMALL} | options),
        )
    agent.setup(family, 0)
    return agent


def test_loss_reaches_features_prior_and_noise() -> None:
    agent = learner()
    support, query = agent._family.context(torch.ones(4, 2), 9, torch.Generator()).rows(0, 4), agent.draw()[1]
    found = torch.autograd.grad(agent.loss(support, query), agent.parameters, allow_unused=True)
    assert all(g is not None and g.abs().max() > 0 for g in found)
    names = {name for name, p in learner(learn_noise=False).inference.named_parameters() if p.requires_grad}
    assert "model.log_noise" not in names and {"model.mean", "model.log_root"} < names


def test_loss_is_the_predictive_that_draws_of_the_belief_approach() -> None:
    """In float64, within four standard errors of the estimate from 50 times 2000 draws."""
    agent = learner(noise=2.0)  # where the predictive is wide, few draws matter to it
    agent.inference.double()
    support, query = (map_tensors(data, lambda t: t.double() if t.is_floating_point() else t) for data in agent.draw())
    with torch_seeded(0), torch.no_grad():
        exact = agent.loss(support, query)
        posterior = agent.inference.update(agent.inference.init(4), support).posterior
        found = torch.stack(
            [
                -per_datum(log_predictive(agent.inference.model, posterior, query, draws=2000), query).mean()
                for _ in range(50)
            ]
        )
    # The logarithm of an average is biased by half its relative variance, which is that of 2000 draws: below 0.01.
    assert (found.mean() - exact).abs() < 4 * found.std() / 50**0.5 + 0.01
    assert found.std() > 0


def test_context_sizes_go_from_none_to_all() -> None:
    agent = learner()
    assert {agent.draw()[0].size for _ in range(100)} == {0, 1, 2, 3, 4, 5}
    assert ALPaCA(Sinusoid().spec).episodes.least_shots == 0


def test_features_end_in_an_activation_and_weights_start_at_their_scale() -> None:
    model = learner(noise=0.5, scale=2.0).inference.model
    assert model.features(1e6 * torch.ones(1, 1, 1)).abs().max() <= 1
    prior = model.prior(1)
    torch.testing.assert_close(prior.stddev, torch.full((1, 4), 2.0))
    assert (prior.mean == 0).all()


def test_same_seed_same_learner_and_state_round_trip() -> None:
    one, two = learner(), learner()
    assert [one.step(), one.step()] == [two.step(), two.step()]
    three = learner()
    three.load_state_dict(copy.deepcopy(one.state_dict()))
    assert three.step() == one.step() and isinstance(three, Algorithm)


def test_with_the_right_features_training_finds_prior_and_noise() -> None:
    """Empirical Bayes on lines through the origin: predictions as good as the family's exact posterior's."""
    family = LinearGaussian(dim=2, prior_mean=1.0, prior_scale=0.5, noise=0.3)
    with seeded(0):
        episodes = Episodes(least_shots=0, meta_batch=50, updates=150, lr=0.05, lr_half=20)
        agent = ALPaCA(family.spec, features=2, episodes=episodes)
        agent.inference.model.features = torch.nn.Identity()
        agent.parameters = [p for p in agent.inference.parameters() if p.requires_grad]
        agent._optimizer = torch.optim.Adam(agent.parameters, lr=0.05)
        agent.setup(family, 0)
        agent.step()
    model = agent.inference.model
    assert isinstance(agent.inference, LinearHead)
    torch.testing.assert_close(model.noise.detach(), torch.tensor([0.3]), rtol=0.05, atol=0)
    torch.testing.assert_close(model.prior(1).mean.detach(), torch.ones(1, 2), rtol=0, atol=0.08)
    torch.testing.assert_close(model.prior(1).stddev.detach(), torch.full((1, 2), 0.5), rtol=0.15, atol=0)
    for shots in (0, 3):
        ours, theirs = (
            predictive_scores(held_out(family, inference, model=m, shots=shots, tasks=100))["nll"].value
            for inference, m in ((agent.inference, model), (family.exact, family.model))
        )
        assert abs(ours - theirs) < 0.02


def test_it_learns_features() -> None:
    """Sinusoids in 200 updates: ten data explain more than nine tenths of the variance."""
    family = Sinusoid()
    with seeded(0):
        agent = ALPaCA(
            family.spec,
            network=Network(widths=(40, 40), activation="tanh"),
            episodes=Episodes(least_shots=0, updates=200, lr=3e-3),
        )
        agent.setup(family, 0)
        agent.step()
    params = family.sample(100, "test", torch.Generator().manual_seed(1))
    found = prediction_scores(agent, family, params, shots=(0, 10))
    assert found["squared_error_of_function"][:, 1].mean() < 0.1 * found["squared_error_of_function"][:, 0].mean()
    gain = found["log_density"][:, 1] - found["log_density"][:, 0]
    assert gain.mean() > 5 * gain.std() / 100**0.5 and found["coverage_95"][:, 1].mean() > 0.9


def test_what_has_no_exact_posterior_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ALPaCA: expected a family of numbers, got classes.*algorithm=versa"):
        ALPaCA(Spec("classes", 2, 3, ("a", "b", "c"), classes=True))
    with pytest.raises(ValueError, match="features of one datum that do not depend on the others"):
        ALPaCA(Sinusoid().spec, network=Network(norm=True))
    with pytest.raises(ValueError, match="scale is a standard deviation, expected > 0, got 0"):
        ALPaCA(Sinusoid().spec, scale=0.0)
    with pytest.raises(ValueError, match="noise is a standard deviation, expected > 0"):
        ALPaCA(Sinusoid().spec, noise=-1.0)


def test_configuration_has_the_defaults_of_the_class() -> None:
    stated = OmegaConf.create(files("bayesmeta.configs.algorithm").joinpath("alpaca.yaml").read_text())
    family = LinearGaussian()
    with seeded(0):
        ours = ALPaCA(family.spec)
    with seeded(0):
        theirs = instantiate(without_schema(OmegaConf.to_container(stated)))(spec=family.spec)
    assert ours.episodes == theirs.episodes and len(ours.parameters) == len(theirs.parameters)
    pairs = zip(ours.inference.parameters(), theirs.inference.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
