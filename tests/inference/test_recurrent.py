"""The recurrent belief: prefixes, padding, order, and the bounds of its spread; and the code of one who is told."""

import math

import pytest
import torch

from bayesmeta.inference.privileged import Told
from bayesmeta.inference.recurrent import RecurrentGaussian
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.types import Context, Spec, concat

SPEC = Spec.discrete("grid", obs_sizes=(4, 3), actions=3, horizon=6, params={"a": 5, "b": 2})


def belief(**options) -> RecurrentGaussian:
    with torch_seeded(0):
        return RecurrentGaussian(SPEC, 2, memory=8, **options).double()


def data(mask=None) -> Context:
    generator = torch.Generator().manual_seed(1)
    obs = torch.stack([torch.randint(n, (4, 7), generator=generator) for n in SPEC.obs_sizes], -1)
    action = torch.nn.functional.one_hot(torch.randint(3, (4, 6), generator=generator), 3)
    x, y = torch.cat([obs[:, :-1], action], -1), torch.cat([torch.zeros(4, 6, 1), obs[:, 1:]], -1)
    return Context(x.double(), y.double(), torch.ones(4, 6, dtype=torch.bool) if mask is None else mask)


MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], [1, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize("mask", [None, MASK], ids=["real", "padded"])
def test_the_beliefs_of_all_prefixes_are_those_of_updates(mask):
    inference, context = belief(), data(mask)
    scanned = inference.scan(inference.init(4), context)
    for n in range(7):
        updated = inference.update(inference.init(4), context.rows(0, n))
        for name in ("memory", "mean", "scale"):
            rows = getattr(scanned, name)[4 * n : 4 * n + 4]
            torch.testing.assert_close(rows, getattr(updated, name), rtol=1e-12, atol=1e-12)


def test_beliefs_of_distinct_prefixes_are_those_of_all_of_them():
    inference, context = belief(), data(MASK)
    posterior, task, number = inference.prefixes(inference.init(4), context)
    assert task.tolist() == [0] * 7 + [1] + [2] * 4 + [3] * 3
    assert number.tolist() == [*range(7), 0, *range(4), *range(3)]
    scanned = inference.scan(inference.init(4), context).posterior
    rows = [
        next(n for n in range(7) if MASK[b, :n].sum() == k) * 4 + b
        for b, k in zip(task.tolist(), number.tolist(), strict=True)
    ]
    torch.testing.assert_close(posterior.mean, scanned.mean[rows], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(posterior.stddev, scanned.stddev[rows], rtol=1e-12, atol=1e-12)


def test_updating_in_two_parts_is_updating_once_and_padding_is_never_read():
    inference, context = belief(), data(MASK)
    once = inference.update(inference.init(4), context)
    twice = inference.update(inference.update(inference.init(4), context.rows(0, 2)), context.rows(2, 6))
    torch.testing.assert_close(once.mean, twice.mean, rtol=1e-12, atol=1e-12)
    other = data(MASK)
    other.x[~MASK], other.y[~MASK] = torch.nan, 1e9
    assert torch.equal(inference.update(inference.init(4), other).mean, once.mean)


def test_without_data_it_is_the_learned_start_and_order_matters():
    inference, context = belief(), data()
    start, none = inference.init(4), inference.update(inference.init(4), data(torch.zeros_like(MASK)))
    assert torch.equal(start.mean, none.mean) and start.mean.abs().min() > 0
    turned = Context(context.x.flip(1), context.y.flip(1), context.mask)
    assert not torch.allclose(inference.update(start, turned).mean, inference.update(start, context).mean)


def test_the_spread_keeps_its_bounds_and_may_be_fixed():
    inference = belief(least=0.2, most=3.0)
    with torch.no_grad():
        inference.read[-1].weight.mul_(1e4)
    scale = inference.update(inference.init(4), data()).scale
    assert scale.min() >= 0.2 * (1 - 1e-6) and scale.max() <= 3.0 * (1 + 1e-6) and scale.max() / scale.min() > 10
    fixed = belief(least=0.1, most=0.1)
    torch.testing.assert_close(fixed.update(fixed.init(4), data()).scale, torch.full((4, 2), 0.1).double())


@pytest.mark.parametrize("make", [RecurrentGaussian, Told])
def test_wrong_bounds_are_refused(make):
    with pytest.raises(ValueError, match=r"expected 0 < least <= most, got 2\.0 and 1\.0"):
        make(SPEC, 2, least=2.0, most=1.0)


def test_a_family_whose_data_hold_no_next_observations_is_refused():
    spec = Spec.control("line", obs_dim=2, action_dim=1, horizon=3, param_names=("p",))
    with pytest.raises(ValueError, match=r"TransitionMemory: expected a family whose data hold next observations"):
        RecurrentGaussian(spec, 2)


def test_rewards_are_read_if_asked_to():
    paid = data()
    paid.y[..., 0] = 1.0
    for reward in (True, False):
        inference = belief(reward=reward)
        same = torch.equal(
            inference.update(inference.init(4), paid).mean, inference.update(inference.init(4), data()).mean
        )
        assert same == (not reward)


def test_who_is_told_has_one_code_per_task():
    with torch_seeded(0):
        told = Told(SPEC, 3)
    tasks = torch.cartesian_prod(torch.arange(5), torch.arange(2)).float()
    code = told(tasks)
    assert code.batch_shape == (10,) and code.event_shape == (3,)
    assert torch.cdist(code.mean, code.mean).add(torch.eye(10)).min() > 1e-3
    torch.testing.assert_close(told(tasks[3:4]).mean, code.mean[3:4])
    assert float(code.stddev.detach().min()) >= 0.05 and float(code.stddev.detach().max()) <= 1.0
    with torch_seeded(0):
        fixed = Told(SPEC, 3, least=0.1, most=0.1)
    assert math.isclose(float(fixed(tasks).stddev.detach().max()), 0.1, rel_tol=1e-6)


def test_real_parameters_may_be_told_too():
    spec = Spec.control("line", obs_dim=2, action_dim=1, horizon=3, param_names=("p", "q"), dynamics_vary=True)
    with torch_seeded(0):
        told = Told(spec, 3)
    assert told(torch.randn(4, 2, generator=torch.Generator().manual_seed(0))).mean.shape == (4, 3)


def test_parts_of_a_trial_may_be_joined():
    inference = belief()
    both = concat([data(MASK), data()])
    parts = inference.update(inference.update(inference.init(4), data(MASK)), data())
    torch.testing.assert_close(inference.update(inference.init(4), both).mean, parts.mean, rtol=1e-12, atol=1e-12)


def test_an_embedding_that_has_grown_does_not_saturate_the_recurrence():
    inference = belief()
    linear = [layer for layer in inference.memory.embedding.layers if isinstance(layer, torch.nn.Linear)][-1]
    with torch.no_grad():
        linear.weight.mul_(1e4)
        linear.bias.mul_(1e4)
    remembered = inference.update(inference.init(4), data().rows(0, 1)).memory
    assert remembered.abs().max() < 0.9 and remembered.std(0).mean() > 0.02
