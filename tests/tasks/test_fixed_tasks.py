"""A finite meta-training set: the same tasks and the same data every time, and everything else untouched."""

import copy

import pytest
import torch

from bayesmeta.diagnostics.held_out import KnowsFunction, KnowsModel
from bayesmeta.diagnostics.truth import KnowsPosterior
from bayesmeta.tasks.bernoulli_bandit import BernoulliBandit
from bayesmeta.tasks.finite_hypotheses import FiniteHypotheses
from bayesmeta.tasks.fixed_tasks import FixedTasks
from bayesmeta.tasks.linear_gaussian import LinearGaussian
from bayesmeta.tasks.pacoh_sinusoid import PacohSinusoid
from bayesmeta.tasks.sinusoid import Sinusoid
from bayesmeta.types import SupervisedFamily


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "family",
    [
        FixedTasks(LinearGaussian(dim=2), tasks=6, shots=5),
        PacohSinusoid(train_tasks=6),
        Sinusoid(noise=0.0, train_tasks=6),
    ],
    ids=lambda family: type(family).__name__,
)
def test_training_sees_finitely_many_tasks_and_data(family: SupervisedFamily) -> None:
    """The data of 200 draws are 6 x 5 (x 10 of the sinusoid), no context has one of them twice, and all occur."""
    most = 10 if isinstance(family, Sinusoid) else 5
    params = family.sample(200, "train", generator := seeded(1))
    whole, some = family.context(params, most, generator), family.context(params, 3, generator)
    assert len(params.unique(dim=0)) == 6
    rows = torch.cat([params.unsqueeze(1).expand(-1, most, -1), whole.x, whole.y], -1).flatten(0, 1)
    assert len(rows.unique(dim=0)) == 6 * most
    picked = torch.cat([params.unsqueeze(1).expand(-1, 3, -1), some.x, some.y], -1).flatten(0, 1)
    assert len(torch.cat([rows, picked]).unique(dim=0)) == 6 * most == len(picked.unique(dim=0))
    assert all(len(context.unique(dim=0)) == 3 for context in some.x)
    again = family.context(params, most, seeded(2))
    assert not torch.equal(again.y, whole.y) and torch.equal(again.y.sort(1).values, whole.y.sort(1).values)
    with pytest.raises(ValueError, match=rf"at most {most} data of a training task, got shots = {most + 1}"):
        family.context(params, most + 1, seeded())


def test_other_splits_and_what_a_family_knows_are_its_own() -> None:
    family = Sinusoid(resolution=4)
    fixed = FixedTasks(family, tasks=3, shots=2)
    for split in ("test", "ood"):
        params, same = (f.sample(50, split, seeded(3)) for f in (family, fixed))
        assert torch.equal(params, same)
        data, same = (f.context(params, 7, seeded(4)) for f in (family, fixed))
        assert torch.equal(data.x, same.x) and torch.equal(data.y, same.y)
    assert fixed.model is family.model and fixed.spec == family.spec
    assert all(isinstance(fixed, knows) for knows in (SupervisedFamily, KnowsModel, KnowsPosterior, KnowsFunction))
    assert not isinstance(FixedTasks(BernoulliBandit()), KnowsFunction)
    assert torch.equal(copy.deepcopy(fixed).tasks, fixed.tasks)


def test_a_batch_may_mix_training_tasks_with_others() -> None:
    fixed = FixedTasks(Sinusoid(), tasks=3, shots=4)
    fresh = fixed.sample(2, "test", seeded(1))
    data = fixed.context(torch.cat([fresh[:1], fixed.tasks[:1], fresh[1:]]), 4, seeded(2))
    assert torch.equal(data.x[1].sort(0).values, fixed.data.x[0].sort(0).values)
    assert torch.equal(data.y[0], Sinusoid().context(torch.cat([fresh, fresh])[:3], 4, seeded(2)).y[0])


def test_the_set_follows_from_its_seed() -> None:
    sets = [PacohSinusoid(data_seed=seed).training for seed in (0, 0, 1)]
    assert torch.equal(sets[0].data.y, sets[1].data.y) and not torch.equal(sets[0].data.y, sets[2].data.y)
    assert sets[0].data.y.shape == (20, 5, 1)  # the protocol of Rothfuss et al. 2021


def test_impossible_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 50 different tasks, got some twice from finite_hypotheses-v1"):
        FixedTasks(FiniteHypotheses(), tasks=50)
    with pytest.raises(ValueError, match="at least one task and one datum of each, got 0 and 10"):
        FixedTasks(Sinusoid(), tasks=0)
