"""Neural processes: what each objective is, which options are which method, and that they learn."""

import copy
import math
from importlib.resources import files

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torch.distributions import kl_divergence

from bayesmeta.algorithms.neural_process import NeuralProcess
from bayesmeta.config import without_schema
from bayesmeta.diagnostics.held_out import prediction_scores
from bayesmeta.episodic import Episodes
from bayesmeta.inference.product import ProductOfGaussians
from bayesmeta.inference.set_encoder import MeanEncoder
from bayesmeta.models.decoder import AttentiveDecoder, Decoder
from bayesmeta.models.network_model import inductive
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.tasks.linear_gaussian import LinearGaussian
from bayesmeta.tasks.point_goal import PointGoal
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.train import seeded
from bayesmeta.types import Algorithm, Context, Spec, concat

SMALL = Episodes(meta_batch=4, shots=5, least_shots=0, queries=6, updates=2)
CNP = {"latent": "point", "objective": "predictive"}
METHODS = {
    "cnp": CNP,
    "np": {},
    "npml": {"objective": "predictive", "draws": 4},
    "anp": {"attention": True, "heads": 2},
    "canp": CNP | {"attention": True, "heads": 2},
    "bayesian_aggregation": {"aggregation": "precision"},
    "product_predictive": {"aggregation": "precision", "objective": "predictive"},
}

each_method = pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)


def learner(**options: object) -> NeuralProcess:
    with seeded(0):
        family = Sinusoid()
        agent = NeuralProcess(family.spec, **({"latent_dim": 3, "widths": (8, 8), "episodes": SMALL} | options))
    agent.setup(family, 0)
    return agent


def episode(agent: NeuralProcess, shots: int = 4) -> tuple[Context, Context]:
    generator = torch.Generator().manual_seed(0)
    data = agent._family.context(agent._family.sample(4, "train", generator), shots + 6, generator)
    return data.rows(0, shots), data.rows(shots, shots + 6)


@each_method
def test_loss_reaches_every_weight(options: dict[str, object]) -> None:
    agent = learner(**options)
    found = torch.autograd.grad(agent.loss(*episode(agent)), agent.parameters, allow_unused=True)
    dead = [
        name
        for (name, _), g in zip(agent.inference.named_parameters(), found, strict=True)
        if g is None or g.abs().max() == 0
    ]
    assert not dead
    assert agent.loss(*episode(agent, shots=0)).isfinite()


@pytest.mark.parametrize("scored", ["all", "query"])
@pytest.mark.parametrize("attention", [False, True])
def test_elbo_is_the_published_one(scored: str, attention: bool) -> None:
    """``E_q(z|T) log p - KL(q(z|T) || q(z|C))`` by hand, with the same draws."""
    agent = learner(scored=scored, draws=3, attention=attention, heads=2)
    support, query = episode(agent)
    with torch_seeded(1):
        loss = agent.loss(support, query)
    encoder, model, together = agent.inference, inductive(agent.inference.model, support), concat([support, query])
    context, all_data = (encoder.update(encoder.init(4), data).posterior for data in (support, together))
    with torch_seeded(1):
        z = all_data.rsample((3,))
    targets = together if scored == "all" else query
    elbo = model.log_likelihood(z, targets).mean(0) - kl_divergence(all_data, context)
    torch.testing.assert_close(loss, -(elbo / targets.size).mean())


def test_predictive_averages_densities_of_all_targets_of_a_task_together() -> None:
    agent = learner(objective="predictive", draws=5, scored="query")
    support, query = episode(agent)
    with torch_seeded(1):
        loss = agent.loss(support, query)
    posterior = agent.inference.update(agent.inference.init(4), support).posterior
    with torch_seeded(1):
        z = posterior.rsample((5,))
    joint = agent.inference.model.log_likelihood(z, query)
    torch.testing.assert_close(loss, -(joint.logsumexp(0) - math.log(5)).mean() / query.size)


def test_options_are_the_published_methods() -> None:
    cnp, anp = learner(**CNP).inference, learner(attention=True, heads=2).inference
    assert isinstance(cnp.encoder, MeanEncoder) and cnp.encoder.head is None and cnp.init(1).sd is None
    assert isinstance(anp.model, AttentiveDecoder) and anp.init(1).sd is not None
    product = learner(aggregation="precision").inference
    assert isinstance(product.encoder, ProductOfGaussians) and product.encoder.prior_factor
    assert isinstance(product.model, Decoder)


def duplicated(agent: NeuralProcess) -> tuple[Tensor, Tensor]:
    """Predictive standard deviations, latent by latent, after a context and after the same context twice."""
    support, _ = episode(agent)
    beliefs = [
        agent.inference.update(agent.inference.init(4), data).posterior.stddev
        for data in (support, concat([support, support]))
    ]
    return beliefs[0], beliefs[1]


def test_only_the_product_contracts_on_duplicated_data() -> None:
    once, twice = duplicated(learner())
    torch.testing.assert_close(once, twice, rtol=1e-5, atol=0)
    once, twice = duplicated(learner(aggregation="precision"))
    assert (twice < 0.95 * once).all()


@each_method
def test_same_seed_same_learner_and_state_round_trip(options: dict[str, object]) -> None:
    def two_steps(agent: NeuralProcess) -> list[dict[str, float]]:
        with seeded(1):
            return [agent.step(), agent.step()]

    one, two = learner(**options), learner(**options)
    assert two_steps(one) == two_steps(two) and isinstance(one, Algorithm)
    three = learner(**options)
    three.load_state_dict(copy.deepcopy(one.state_dict()))
    assert two_steps(three) == two_steps(one)


def test_classes() -> None:
    spec = Spec("classes", 2, 3, ("a", "b", "c"), classes=True)
    with seeded(0):
        agent = NeuralProcess(spec, latent_dim=2, widths=(8,), episodes=SMALL)
    x = torch.randn(2, 9, 2, generator=torch.Generator().manual_seed(0))
    data = Context.of(x, torch.eye(3).repeat(3, 1).expand(2, -1, -1))
    assert 0.5 < agent.update(data.rows(0, 3), data.rows(3, 9)) < 3


@pytest.mark.parametrize("options", [CNP | {"scored": "query"}, METHODS["product_predictive"]])
def test_it_learns_and_adapts(options: dict[str, object]) -> None:
    """Lines in 200 updates: most of what can be explained is, after ten data, and none of it before any."""
    family = LinearGaussian(dim=1, noise=0.3)
    with seeded(0):
        agent = NeuralProcess(
            family.spec,
            latent_dim=8,
            widths=(32, 32),
            episodes=Episodes(least_shots=0, updates=200, lr=3e-3),
            **options,
        )
        agent.setup(family, 0)
        agent.step()
    params = family.sample(200, "test", torch.Generator().manual_seed(1))
    error = prediction_scores(agent, family, params, shots=(0, 10))["squared_error"].mean(0)
    assert error[0] > 0.8 and error[1] < 0.3


def test_what_cannot_work_is_refused() -> None:
    for options in ({"objective": "elbo"}, CNP | {"aggregation": "precision"}):
        with pytest.raises(ValueError, match="expected objective = predictive and aggregation = mean for a latent"):
            learner(**({"latent": "point"} | options))
    family = PointGoal(horizon=3)
    with pytest.raises(ValueError, match="NeuralProcess needs a supervised family"):
        NeuralProcess(family.spec).setup(family, 0)


def test_configuration_has_the_defaults_of_the_class() -> None:
    stated = OmegaConf.create(files("bayesmeta.configs.algorithm").joinpath("neural_process.yaml").read_text())
    family = LinearGaussian()
    with seeded(0):
        ours = NeuralProcess(family.spec)
    with seeded(0):
        theirs = instantiate(without_schema(OmegaConf.to_container(stated)))(spec=family.spec)
    for option in ("episodes", "objective", "scored", "draws"):
        assert getattr(ours, option) == getattr(theirs, option)
    pairs = zip(ours.inference.parameters(), theirs.inference.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert ours.inference.model.output.least == theirs.inference.model.output.least == 1e-3
