"""The replay table: what is drawn, how often, and how much memory it takes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayesmeta.replay import TaskReplay
from bayesmeta.types import Transitions


def data(tags: list[list[float]], mask: list[list[bool]] | None = None) -> Transitions:
    """Rows whose every field is made of one tag, so that a row that was torn apart shows."""
    tag = torch.tensor(tags)
    real = torch.ones_like(tag, dtype=torch.bool) if mask is None else torch.tensor(mask)
    return Transitions(
        obs=torch.stack([tag, tag + 0.1], -1),
        action=(tag + 0.2).unsqueeze(-1),
        reward=tag + 0.3,
        training_reward=tag + 0.4,
        next_obs=torch.stack([tag + 0.5, tag + 0.6], -1),
        terminated=tag.long() % 2 == 1,
        boundary=torch.ones_like(real),
        mask=real,
    )


def tags(rows: Transitions) -> Tensor:
    """The tags ``[B, N]`` of drawn rows, every field of which must belong together."""
    tag = rows.obs[..., 0]
    whole = data(tag.tolist())
    for name in ("obs", "action", "reward", "training_reward", "next_obs"):
        assert torch.allclose(getattr(rows, name), getattr(whole, name))
    assert torch.equal(rows.terminated, whole.terminated) and rows.mask.all()
    return tag


def all_tags(replay: TaskReplay, task: int, recent: bool = False) -> list[float]:
    """Every distinct tag that sampling can give (2000 draws of at most 30: none is missed but with chance 1e-28)."""
    draw = replay.sample_recent if recent else replay.sample
    return sorted(set(tags(draw(torch.tensor([task]), 2000, torch.Generator().manual_seed(0)))[0].tolist()))


def test_rows_come_back_whole_and_to_their_task():
    replay = TaskReplay(3, obs_dim=2, action_dim=1)
    replay.add(torch.tensor([2, 0]), data([[20.0, 21.0], [1.0, 2.0]]))
    replay.add(torch.tensor([1]), data([[10.0]]))
    replay.add(torch.tensor([0, 2]), data([[3.0], [22.0]]))
    assert [all_tags(replay, task) for task in range(3)] == [[1, 2, 3], [10], [20, 21, 22]]
    assert replay.size.tolist() == [3, 1, 3]


def test_draws_are_the_generators_and_for_the_tasks_asked():
    replay = TaskReplay(3, obs_dim=2, action_dim=1)
    replay.add(torch.arange(3), data([[float(10 * b + t) for t in range(9)] for b in range(3)]))
    asked = torch.tensor([2, 0, 2])
    drawn = [tags(replay.sample(asked, 50, torch.Generator().manual_seed(s))) for s in (0, 0, 1)]
    assert drawn[0].shape == (3, 50) and torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[0].div(10, rounding_mode="floor").long(), asked.unsqueeze(1).expand(3, 50))
    assert not torch.equal(drawn[0][0], drawn[0][2])


def chi_square(counts: Tensor, probability: Tensor) -> float:
    expected = counts.sum() * probability
    return float(((counts - expected) ** 2 / expected).sum())


def test_sampling_is_uniform_over_each_tasks_own_length():
    """Chi-square at one failure in 10^4 for each length; a draw that favours one row by a tenth is found."""
    limits = {5: 23.51, 20: 50.80}  # of 4 and 19 degrees of freedom
    replay, n = TaskReplay(2, obs_dim=2, action_dim=1), 40000
    replay.add(torch.tensor([0]), data([[float(t) for t in range(5)]]))
    replay.add(torch.tensor([1]), data([[float(t) for t in range(20)]]))
    drawn = replay.sample(torch.arange(2), n, torch.Generator().manual_seed(0)).obs[..., 0].long()
    for row, length in enumerate(limits):
        counts = torch.bincount(drawn[row], minlength=length).double()
        assert len(counts) == length
        assert chi_square(counts, torch.full((length,), 1 / length)) < limits[length]
    favoured = torch.tensor([1.1, 1.0, 1.0, 1.0, 1.0])
    assert chi_square(n * favoured / favoured.sum(), torch.full((5,), 0.2)) > limits[5]


def test_padding_is_dropped():
    replay = TaskReplay(2, obs_dim=2, action_dim=1)
    padded = data([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [[True, False, True], [False, False, False]])
    replay.add(torch.arange(2), padded)
    replay.add(torch.tensor([1]), data([[7.0]]))
    assert replay.size.tolist() == [2, 1] and all_tags(replay, 0) == [1, 3] and all_tags(replay, 1) == [7]


def test_recent_rows_are_those_of_the_latest_visit():
    replay, both = TaskReplay(2, obs_dim=2, action_dim=1), torch.arange(2)
    replay.begin_visit(both)
    replay.add(both, data([[1.0, 2.0], [11.0, 12.0]]))
    replay.add(both, data([[3.0], [13.0]]))
    assert all_tags(replay, 0, recent=True) == [1, 2, 3]
    replay.begin_visit(torch.tensor([0]))
    replay.add(torch.tensor([0]), data([[4.0]]))
    replay.add(torch.tensor([0]), data([[5.0]]), context=False)  # for the learner only
    assert all_tags(replay, 0, recent=True) == [4] and all_tags(replay, 0) == [1, 2, 3, 4, 5]
    assert all_tags(replay, 1, recent=True) == [11, 12, 13]  # its latest visit is the first


def test_a_history_is_the_visit_up_to_the_end_of_an_episode():
    """Distinct rows of the first one, two or three episodes, each a third of the time; at most ``count`` of them."""
    replay, both = TaskReplay(2, obs_dim=2, action_dim=1), torch.arange(2)
    replay.add(both, data([[90.0], [91.0]]))
    replay.begin_visit(both)
    for episode in ([[1.0, 2.0], [11.0, 12.0]], [[3.0], [13.0]], [[4.0, 5.0, 6.0], [14.0, 15.0, 16.0]]):
        replay.add(both, data(episode))
    replay.begin_visit(torch.tensor([1]))
    replay.add(torch.tensor([1]), data([[21.0, 22.0]]))
    replay.add(both, data([[7.0], [23.0]]), context=False)
    generator, seen = torch.Generator().manual_seed(0), []
    for _ in range(600):
        rows = replay.sample_history(both, 10, generator)
        first, second = (sorted(o[m, 0].tolist()) for o, m in zip(rows.obs, rows.mask, strict=True))
        assert second == [21, 22]
        seen.append(tuple(first))
    expected = [(1, 2), (1, 2, 3), (1, 2, 3, 4, 5, 6)]
    assert sorted(set(seen)) == expected
    assert all(150 < seen.count(history) < 250 for history in expected)  # 200 +- 4.3 standard deviations
    few = [replay.sample_history(both[:1], 4, generator) for _ in range(200)]
    assert max(int(rows.mask.sum()) for rows in few) == 4
    assert {tag for rows in few for tag in rows.obs[rows.mask][:, 0].tolist()} == {1, 2, 3, 4, 5, 6}


def test_tasks_without_data_are_named():
    replay = TaskReplay(4, obs_dim=2, action_dim=1)
    replay.add(torch.tensor([1]), data([[1.0]]))
    with pytest.raises(ValueError, match=r"no data for tasks \[3, 0\]; collect for every task before sampling"):
        replay.sample(torch.tensor([3, 1, 0]), 5, torch.Generator())
    replay.begin_visit(torch.tensor([1]))
    assert all_tags(replay, 1) == [1]
    with pytest.raises(ValueError, match=r"no data for tasks \[1\]"):
        replay.sample_recent(torch.tensor([1]), 5, torch.Generator())
    with pytest.raises(ValueError, match=r"no data for tasks \[1\]"):
        replay.sample_history(torch.tensor([1]), 5, torch.Generator())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_memory_is_what_the_data_need(lengths):
    """Nothing before data, at most half again as much ever after, and no row is lost while the table grows."""
    replay, total = TaskReplay(3, obs_dim=2, action_dim=1), 0
    assert replay.nbytes == 0
    for length in lengths:
        replay.add(torch.arange(3), data([[float(total + t) for t in range(length)]] * 3))
        total += length
        needed = 3 * total * (2 + 1 + 2 + 2 + 1) * 4  # s, a, reward and training reward, s', terminated; float32
        assert needed <= replay.nbytes <= 1.5 * needed + 3 * 8 * 4
    assert torch.equal(replay.rows[:, :total, 0], torch.arange(total).float().expand(3, -1))


def test_growth_is_geometric():
    """Adding row by row copies the table a number of times that grows with the logarithm only."""
    replay, copies, last = TaskReplay(1, obs_dim=2, action_dim=1), 0, None
    for t in range(300):
        replay.add(torch.tensor([0]), data([[float(t)]]))
        copies += replay.rows is not last
        last = replay.rows
    assert copies < 20


def test_state_round_trip_goes_on_the_same():
    def filled() -> TaskReplay:
        replay = TaskReplay(2, obs_dim=2, action_dim=1)
        replay.begin_visit(torch.arange(2))
        replay.add(torch.arange(2), data([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [[True] * 3, [True, False, False]]))
        return replay

    def go_on(replay: TaskReplay) -> list[Tensor]:
        replay.begin_visit(torch.tensor([1]))
        replay.add(torch.tensor([1]), data([[7.0, 8.0]]))
        generator = torch.Generator().manual_seed(0)
        draws = (replay.sample, replay.sample_recent, replay.sample_history)
        return [draw(torch.arange(2), 9, generator).obs for draw in draws]

    original, restored = filled(), TaskReplay(2, obs_dim=2, action_dim=1)
    state = original.state_dict()
    kept = {name: value.clone() for name, value in state.items()}
    restored.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(go_on(original), go_on(restored), strict=True))
    assert all(torch.equal(state[name], kept[name]) for name in kept), "the saved state was written to"


def test_state_holds_no_spare_capacity():
    replay = TaskReplay(2, obs_dim=2, action_dim=1)
    for t in range(10):
        replay.add(torch.arange(2), data([[float(t)], [float(t)]]))
    assert replay.rows.shape[1] > 10 and replay.state_dict()["rows"].shape == (2, 10, 8)


@pytest.mark.gpu
def test_device():
    replay = TaskReplay(2, obs_dim=2, action_dim=1, device="cuda")
    cuda = data([[1.0, 2.0], [3.0, 4.0]])
    cuda = Transitions(**{name: value.cuda() for name, value in vars(cuda).items()})
    replay.add(torch.arange(2, device="cuda"), cuda)
    drawn = replay.sample(torch.arange(2, device="cuda"), 5, torch.Generator("cuda").manual_seed(0))
    assert drawn.obs.device.type == "cuda" and replay.rows.device.type == "cuda"
