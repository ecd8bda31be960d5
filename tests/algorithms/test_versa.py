"""VERSA: which gradient reaches what, what its loss averages, and that it learns to learn."""

import copy
import math
from importlib.resources import files

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from bayesmeta.algorithms.versa import VERSA
from bayesmeta.config import without_schema
from bayesmeta.diagnostics.held_out import prediction_scores
from bayesmeta.episodic import Episodes
from bayesmeta.models.architectures import Network
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.train import seeded
from bayesmeta.types import Algorithm, Context, Spec


class Clusters:
    """Three classes of Gaussian points around centres that differ from task to task: the simplest few-shot family."""

    spec = Spec("clusters", 2, 3, tuple(f"centre_{k}" for k in range(6)), classes=True)

    def sample(self, n: int, split: str, generator: torch.Generator) -> Tensor:
        return 2.0 * torch.randn(n, 6, generator=generator)

    def context(self, params: Tensor, shots: int, generator: torch.Generator) -> Context:
        label = (torch.arange(shots) % 3).expand(len(params), -1)
        centre = params.unflatten(-1, (3, 2)).gather(1, label.unsqueeze(-1).expand(-1, -1, 2))
        x = centre + 0.5 * torch.randn(len(params), shots, 2, generator=generator)
        return Context.of(x, torch.nn.functional.one_hot(label, 3).float())


def learner(**options: object) -> VERSA:
    small = Episodes(meta_batch=4, shots=6, queries=6, updates=2)
    with seeded(0):
        agent = VERSA(Clusters.spec, **({"features": 4, "network": Network(widths=(8,)), "episodes": small} | options))
    agent.setup(Clusters(), 0)
    return agent


def test_loss_reaches_every_weight() -> None:
    agent = learner()
    found = torch.autograd.grad(agent.loss(*agent.draw()), agent.parameters, allow_unused=True)
    assert all(g is not None and g.abs().max() > 0 for g in found)


def test_loss_averages_probabilities_over_classifiers() -> None:
    """``-log mean_l softmax(logits_l)[y]``, per query: neither logits nor their logarithms are averaged."""
    agent = learner(draws=7)
    support, query = agent.draw()
    with torch_seeded(1):
        loss = agent.loss(support, query)
    inference = agent.inference
    posterior = inference.update(inference.init(4), support).posterior
    with torch_seeded(1):
        z = posterior.rsample((7,)).unflatten(-1, (3, 5))
    logits = inference.model.features(query.x) @ z[..., :4].mT + z[..., 4].unsqueeze(-2)
    right = (logits.softmax(-1).mean(0) * query.y).sum(-1)
    torch.testing.assert_close(loss, -right.log().mean())


def test_same_seed_same_learner_and_state_round_trip() -> None:
    def two_steps(agent: VERSA) -> list[dict[str, float]]:
        with seeded(1):
            return [agent.step(), agent.step()]

    one, two = learner(), learner()
    assert two_steps(one) == two_steps(two) and isinstance(one, Algorithm)
    three = learner()
    three.load_state_dict(copy.deepcopy(one.state_dict()))
    assert two_steps(three) == two_steps(one)


def test_it_learns_to_learn() -> None:
    """At unseen centres in 150 updates: chance before any data, and most points right after four of each class."""
    agent = learner(
        features=16,
        network=Network(widths=(32,)),
        episodes=Episodes(meta_batch=16, shots=12, queries=15, updates=150, lr=3e-3),
    )
    with seeded(0):
        agent.step()
    params = Clusters().sample(200, "test", torch.Generator().manual_seed(1))
    found = prediction_scores(agent, Clusters(), params, shots=(0, 12), queries=15)
    accuracy, density = found["accuracy"].mean(0), found["log_density"].mean(0)
    assert abs(accuracy[0] - 1 / 3) < 0.08 and density[0] > math.log(1 / 3) - 0.3
    assert accuracy[1] > 0.85 and density[1] > -0.5


def test_images_with_and_without_transduction() -> None:
    spec = Spec("images", 64, 3, ("a", "b", "c"), classes=True, x_shape=(1, 8, 8))
    x = torch.rand(2, 9, 64, generator=torch.Generator().manual_seed(0))
    data = Context.of(x, torch.eye(3).repeat(3, 1).expand(2, -1, -1))
    losses = []
    for transductive in (True, False):
        with seeded(0):
            agent = VERSA(spec, network=Network(kind="conv4", filters=4), transductive=transductive)
            losses.append(agent.update(data.rows(0, 3), data.rows(3, 9)))
    assert all(0.3 < loss < 5 for loss in losses) and losses[0] != losses[1]


def test_numbers_are_refused_with_a_way_out() -> None:
    with pytest.raises(ValueError, match=r"VERSA: expected a family of classes, got sinusoid-v1.*neural_process"):
        VERSA(Sinusoid().spec)


def test_configuration_has_the_defaults_of_the_class() -> None:
    stated = OmegaConf.create(files("bayesmeta.configs.algorithm").joinpath("versa.yaml").read_text())
    with seeded(0):
        ours = VERSA(Clusters.spec)
    with seeded(0):
        theirs = instantiate(without_schema(OmegaConf.to_container(stated)))(spec=Clusters.spec)
    for option in ("episodes", "draws", "transductive"):
        assert getattr(ours, option) == getattr(theirs, option)
    pairs = zip(ours.inference.parameters(), theirs.inference.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
