"""Replay of whole trials: what comes out is what went in, the oldest go first, and padding is trimmed."""

import pytest
import torch

from bayesmeta.trial_replay import TrialReplay, Trials
from bayesmeta.types import Spec, Transitions

SPEC = Spec.discrete("grid", obs_sizes=(9,), actions=2, horizon=5, params={"id": 100})


def episodes(first: int, lengths: list[int], horizon: int) -> Transitions:
    mask = torch.arange(horizon) < torch.tensor(lengths).unsqueeze(1)
    value = (first + torch.arange(len(lengths)).float()).unsqueeze(1).expand(mask.shape)
    obs, action = value.unsqueeze(-1), torch.stack([value, -value], -1)
    return Transitions(obs, action, value, 2 * value, obs + 1, mask, mask, mask)


def trials(first: int, lengths: list[int]) -> Trials:
    params = (first + torch.arange(len(lengths)).float()).unsqueeze(1)
    longest = max(lengths)
    return Trials(params, episodes(first, lengths, longest), episodes(first + 1000, lengths[::-1], longest))


def test_trials_stay_whole_and_the_oldest_go_first():
    replay = TrialReplay(SPEC, 4)
    replay.add(trials(0, [2, 5, 1]))
    replay.add(trials(3, [3, 4]))
    found = replay.sample(200, torch.Generator().manual_seed(0))
    assert set(found.params[:, 0].tolist()) == {1.0, 2.0, 3.0, 4.0}
    lengths = {1.0: (5, 5), 2.0: (1, 2), 3.0: (3, 4), 4.0: (4, 3)}
    for b, task in enumerate(found.params[:, 0].tolist()):
        for part, shift, length in ((found.explore, 0, lengths[task][0]), (found.execute, 1000, lengths[task][1])):
            assert part.mask[b].tolist() == [t < length for t in range(5)]
            real = part.mask[b]
            assert (part.obs[b, real] == task + shift).all() and (part.next_obs[b, real] == task + shift + 1).all()
            assert (part.training_reward[b, real] == 2 * (task + shift)).all()


def test_padding_is_trimmed_to_the_longest_and_nothing_old_shows_through():
    replay = TrialReplay(SPEC, 2)
    replay.add(trials(0, [5, 5]))
    replay.add(trials(2, [2, 1]))
    found = replay.sample(50, torch.Generator().manual_seed(0))
    assert found.explore.obs.shape == (50, 2, 1) and found.execute.obs.shape == (50, 2, 1)
    assert int(found.explore.mask.sum(1).max()) == 2


def test_the_state_continues_to_the_bit():
    one, other = TrialReplay(SPEC, 4), TrialReplay(SPEC, 4)
    one.add(trials(0, [2, 5, 1]))
    other.load_state_dict(one.state_dict())
    for replay in (one, other):
        replay.add(trials(3, [3, 4]))
    a, b = (replay.sample(30, torch.Generator().manual_seed(0)) for replay in (one, other))
    assert torch.equal(a.params, b.params) and torch.equal(a.explore.obs, b.explore.obs)
    assert one.added == other.added == 5 and one.size == other.size == 4


def test_nothing_cannot_be_sampled():
    with pytest.raises(ValueError, match="expected trials to have been added, there are none"):
        TrialReplay(SPEC, 4).sample(1, torch.Generator())
