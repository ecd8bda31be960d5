"""Recurrent action values: whole episodes equal single steps, and tables of observations equal the plain layers."""

import pytest
import torch

from bayesmeta.models.embeddings import Integers, ObservationEmbedding, TransitionEmbedding
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.models.recurrent_q import EpsilonGreedy, RecurrentQ
from bayesmeta.types import Spec

SPEC = Spec.discrete("grid", obs_sizes=(4, 3, 2), actions=5, horizon=6, params={"id": 7})


def episode(batch=3, steps=6):
    generator = torch.Generator().manual_seed(1)
    obs = torch.stack([torch.randint(n, (batch, steps), generator=generator) for n in SPEC.obs_sizes], -1).float()
    action = torch.nn.functional.one_hot(torch.randint(5, (batch, steps), generator=generator), 5).float()
    return obs, action, torch.randn(batch, 2, generator=generator)


@pytest.mark.parametrize("latent_dim", [0, 2])
@pytest.mark.parametrize("previous", [True, False])
def test_values_of_an_episode_are_those_of_its_steps(latent_dim, previous):
    with torch_seeded(0):
        q = RecurrentQ(SPEC, latent_dim, previous=previous).double()
    obs, action, z = (v.double() for v in episode())
    whole, memory = q(obs, action, z), q.begin(3)
    for t in range(obs.shape[1]):
        values, memory = q.step(obs[:, t], action[:, t], z, memory)
        torch.testing.assert_close(values, whole[:, t], rtol=1e-12, atol=1e-12)


def test_only_wanted_steps_are_valued():
    with torch_seeded(0):
        q = RecurrentQ(SPEC, 2)
    obs, action, z = episode()
    wanted = torch.arange(6) < torch.tensor([[2], [6], [0]])
    whole, some = q(obs, action, z), q(obs, action, z, wanted)
    torch.testing.assert_close(some[wanted], whole[wanted])
    assert not some[~wanted].any()


def test_it_reads_what_it_says_and_nothing_else():
    obs, action, z = episode()
    for latent_dim, previous in ((0, False), (0, True), (2, False), (2, True)):
        with torch_seeded(0):
            q = RecurrentQ(SPEC, latent_dim, previous=previous)
        assert torch.equal(q(obs, action, z), q(obs, action, z + 1)) == (latent_dim == 0)
        assert torch.equal(q(obs, action, z), q(obs, action.flip(1), z)) == (not previous)


def test_the_advantages_of_a_state_have_mean_zero():
    with torch_seeded(0):
        q = RecurrentQ(SPEC, previous=True)
    obs, action, _ = episode()
    value = q.values(q.recurrence(q._inputs(obs, action))[0])[..., 0]  # its first output
    torch.testing.assert_close(q(obs, action).mean(-1), value)


def test_observations_that_occur_twice_are_embedded_once_with_the_same_values_and_gradients():
    with torch_seeded(0):
        embedding = ObservationEmbedding(SPEC, 4).double()
    obs = episode(batch=40)[0]  # 240 rows, 24 different ones at most
    weight = torch.randn(40, 6, 4, generator=torch.Generator().manual_seed(2)).double()
    found = []
    for out in (embedding(obs), embedding.layers(obs)):
        gradients = torch.autograd.grad((weight * out).sum(), list(embedding.parameters()))
        found.append((out, *gradients))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_components_do_not_share_their_values():
    with torch_seeded(0):
        integers = Integers((3, 3), 2)
    out = integers(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    assert out.shape == (2, 4) and not torch.isclose(out[0, :2], out[1, 2:]).any()


def test_real_observations_and_rewards_take_part():
    spec = Spec.control("line", obs_dim=2, action_dim=1, horizon=3, param_names=("p",), dynamics_vary=True)
    x, y = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 4, 3)
    for reward in (True, False):
        with torch_seeded(0):
            embedding = TransitionEmbedding(spec, 5, reward=reward)
        paid = y.clone()
        paid[..., 0] = 1.0
        assert torch.equal(embedding(x, y), embedding(x, paid)) == (not reward)


def test_epsilon_greedy_takes_the_best_action_but_for_epsilon():
    with torch_seeded(0):
        q = RecurrentQ(SPEC, previous=True)
    obs, action, z = (v[:, 0] for v in episode()[:2]), None, None
    obs, action = obs
    best = q.step(obs, action, z, q.begin(3))[0].argmax(-1)
    law, _ = EpsilonGreedy(q, 0.3).act(obs, action, torch.zeros(3, 0), q.begin(3))
    expected = torch.full((3, 5), 0.06).scatter(1, best.unsqueeze(1), 0.76)
    torch.testing.assert_close(law.probs, expected)
    greedy, _ = EpsilonGreedy(q).act(obs, action, torch.zeros(3, 0), q.begin(3))
    assert torch.equal(greedy.sample().argmax(-1), best)


def test_continuous_actions_are_refused():
    spec = Spec.control("line", obs_dim=2, action_dim=1, horizon=3, param_names=("p",))
    with pytest.raises(ValueError, match="expected a family with discrete actions, got 'line'"):
        RecurrentQ(spec)
