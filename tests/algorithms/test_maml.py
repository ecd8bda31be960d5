"""MAML: which gradient reaches what, its relatives, and that it learns."""

import copy
import subprocess
import sys
from importlib.resources import files

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from bayesmeta.algorithms.maml import MAML
from bayesmeta.config import without_schema
from bayesmeta.diagnostics.held_out import prediction_scores
from bayesmeta.episodic import Episodes
from bayesmeta.evaluate import predictive_curve
from bayesmeta.models.architectures import Network
from bayesmeta.tasks.linear_gaussian import LinearGaussian
from bayesmeta.tasks.point_goal import PointGoal
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.train import seeded, train
from bayesmeta.types import Algorithm, Context, Spec

SMALL = Episodes(meta_batch=4, shots=5, queries=6, updates=2)


def learner(**options: object) -> MAML:
    with seeded(0):
        family = Sinusoid()
        agent = MAML(family.spec, **({"network": Network(widths=(8,)), "episodes": SMALL} | options))
    agent.setup(family, 0)
    return agent


def gradients(agent: MAML) -> dict[str, torch.Tensor | None]:
    names = {id(p): name for name, p in agent.inference.named_parameters()}
    found = torch.autograd.grad(agent.loss(*agent.draw()), agent.parameters, allow_unused=True)
    return {names[id(p)]: g for p, g in zip(agent.parameters, found, strict=True)}


def test_loss_reaches_start_noise_and_rate_and_nothing_else() -> None:
    plain, learned = gradients(learner()), gradients(learner(learn_rate="parameter"))
    assert all(g is not None and g.abs().max() > 0 for g in (*plain.values(), *learned.values()))
    assert set(learned) - set(plain) == {"optimizer.rate"} and learned["optimizer.rate"].shape == (25,)
    assert "model.output.log_noise" in plain and "model.log_scale" not in plain
    assert "model.output.log_noise" not in gradients(learner(learn_noise=False))


def test_relatives_are_told_apart() -> None:
    """Rates per step and per parameter have their shapes; a first-order gradient differs; ANIL's latent is the head."""
    assert learner(learn_rate="step", steps=3).inference.optimizer.rate.shape == (3, 1)
    assert learner(learn_rate="one").inference.optimizer.rate.shape == ()
    full, first = gradients(learner(steps=3, rate=0.1)), gradients(learner(steps=3, rate=0.1, first_order=True))
    name = "model.network.0.weight"
    assert (full[name] - first[name]).norm() > 1e-3 * full[name].norm()
    head = learner(adapt="head").inference
    assert head.init(2).z.shape == (2, 9) and head.model.names == ["2.weight", "2.bias"]


def test_no_datum_is_in_support_and_query() -> None:
    support, query = learner().draw()
    assert support.size == 5 and query.size == 6
    assert not (support.x.unsqueeze(2) == query.x.unsqueeze(1)).any()
    ranged = learner(episodes=Episodes(meta_batch=2, shots=3, least_shots=0, queries=1))
    assert {ranged.draw()[0].size for _ in range(60)} == {0, 1, 2, 3}


def test_same_seed_same_learner_and_state_round_trip() -> None:
    one, two = learner(), learner()
    assert [one.step(), one.step()] == [two.step(), two.step()]
    three = learner()
    three.load_state_dict(copy.deepcopy(one.state_dict()))
    assert three.step() == one.step() and isinstance(three, Algorithm)


def test_clip_and_schedule_reach_the_optimiser() -> None:
    """A step of plain descent with clipped gradients moves no coordinate further than rate times bound."""
    agent = learner(episodes=Episodes(meta_batch=2, shots=2, queries=2, updates=1, optimizer="sgd", lr=1.0, clip=1e-3))
    before = [p.detach().clone() for p in agent.parameters]
    agent.step()
    moved = max((p - b).abs().max() for p, b in zip(agent.parameters, before, strict=True))
    assert 0 < moved <= 1e-3 * (1 + 1e-4)
    slow = learner(episodes=Episodes(meta_batch=2, shots=2, queries=2, updates=3, optimizer="sgd", lr_half=2, lr=1.0))
    slow.step()
    assert slow._optimizer.param_groups[0]["lr"] == 0.5


def test_it_learns_and_adapts() -> None:
    """Sinusoids in 600 updates: predictions after 10 data beat those before any by far more than their noise."""
    agent = learner(
        network=Network(), learn_rate="parameter", episodes=Episodes(meta_batch=20, shots=10, queries=10, updates=600)
    )
    summary = train(agent, agent._family, iterations=1, progress="quiet", tensorboard=False)
    assert summary.metrics["loss"] < 3
    params = agent._family.sample(200, "test", torch.Generator().manual_seed(1))
    curve = predictive_curve(agent, agent._family, params, shots=(0, 10))
    gain = curve[:, 1] - curve[:, 0]
    assert gain.mean() > 5 * gain.std() / 200**0.5
    found = prediction_scores(agent, agent._family, params, shots=(0, 10))
    torch.testing.assert_close(found["log_density"].float(), curve)
    assert set(found) == {"log_density", "squared_error", "squared_error_of_function", "coverage_95"}
    assert (found["squared_error_of_function"][:, 1] < found["squared_error_of_function"][:, 0]).float().mean() > 0.6


def test_control_families_and_images_without_convolutions_are_refused() -> None:
    family = PointGoal(horizon=3)
    with pytest.raises(ValueError, match="MAML needs a supervised family, with `context`, got PointGoal"):
        MAML(family.spec).setup(family, 0)
    with pytest.raises(ValueError, match=r"conv4: expected a family of images.*sinusoid-v1.*network.kind=mlp"):
        MAML(Sinusoid().spec, network=Network(kind="conv4"))
    with pytest.raises(ValueError, match="0 <= least_shots <= shots"):
        Episodes(shots=2, least_shots=3)


def test_images_and_classes() -> None:
    """Convolutions on one-hot targets, transductive or by the support's statistics; the loss is a cross-entropy."""
    spec = Spec("images", 64, 3, ("a", "b", "c"), classes=True, x_shape=(1, 8, 8))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 9, 64, generator=generator)
    data = Context.of(x, torch.eye(3).repeat(3, 1).expand(2, -1, -1))
    losses = []
    for transductive in (True, False):
        with seeded(0):
            agent = MAML(
                spec, network=Network(kind="conv4", filters=4), rate=0.4, transductive=transductive, episodes=SMALL
            )
        losses.append(agent.update(data.rows(0, 3), data.rows(3, 9)))
    assert all(0.3 < loss < 5 for loss in losses) and losses[0] != losses[1]


@pytest.mark.slow
def test_compiled_update_is_the_eager_one() -> None:
    """In a process of its own, since the compiler cannot look through the checks of shapes that run under pytest."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True, timeout=600)


COMPILED = """
import torch
from bayesmeta.algorithms.maml import MAML
from bayesmeta.episodic import Episodes
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.train import seeded

agents = []
for compiled in (False, True):
    with seeded(0):
        agents.append(MAML(Sinusoid().spec, steps=2, episodes=Episodes(4, 5, queries=6, compiled=compiled)))
eager, compiled = agents
eager.setup(Sinusoid(), 0)
for _ in range(3):
    data = eager.draw()
    torch.testing.assert_close(compiled.update(*data), eager.update(*data), rtol=1e-5, atol=0)
for ours, theirs in zip(compiled.parameters, eager.parameters, strict=True):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
"""


def test_configuration_has_the_defaults_of_the_class() -> None:
    stated = OmegaConf.create(files("bayesmeta.configs.algorithm").joinpath("maml.yaml").read_text())
    family = LinearGaussian()
    with seeded(0):
        ours = MAML(family.spec)
    with seeded(0):
        theirs = instantiate(without_schema(OmegaConf.to_container(stated)))(spec=family.spec)
    for part in ("episodes", "transductive"):
        assert getattr(ours, part) == getattr(theirs, part)
    for option in ("steps", "objective", "reduction", "first_order", "checkpointed"):
        assert getattr(ours.inference, option) == getattr(theirs.inference, option)
    assert all(
        torch.equal(a, b) for a, b in zip(ours.inference.parameters(), theirs.inference.parameters(), strict=True)
    )
