"""The benchmarks run, and what they compare with does what it says."""

import math
import re
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from bayesmeta.algorithms.dream import DREAM
from bayesmeta.diagnostics.exploration import Explored
from bayesmeta.inference.product import ProductOfGaussians
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.rl.q_learner import Schedule
from bayesmeta.tasks.bus import Bus
from bayesmeta.tasks.grid import RIDE
from bayesmeta.types import Context
from benchmarks import collect, coupled_exploration, exploration, inference_table, memory, pearl_update
from benchmarks._agents import Updates, agent
from benchmarks._flops import executed
from benchmarks._looped_pearl import LoopedPEARL
from benchmarks._stopwatch import timing
from benchmarks._timing import Sample, interleave, native_bf16, table

SIZE = pearl_update.Size(tasks=16, rows=32, context=8, latent=3, width=128, encoder_width=8)


@pytest.mark.parametrize("script", [pearl_update, collect, memory], ids=lambda script: script.__name__)
def test_scripts_print_tables_of_numbers(script, capsys):
    script.main(["--quick"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert sum("---" in line for line in lines) >= 2
    for line in lines:
        assert line.count("|") >= 4 and "nan" not in line and "inf" not in line
    assert any("bayesmeta" in line or "point-robot" in line or "backward" in line for line in lines)


# --- operations, counted by hand -----------------------------------------------------------------------------------


def products(rows: int, *sizes: int) -> int:
    """Of one pass through a network: forward, or all its weights' gradients, or all its inputs' gradients."""
    return 2 * rows * sum(i * o for i, o in pairwise(sizes))


def by_hand(size: pearl_update.Size) -> int:
    """The published organisation: 7 passes forward; 2 networks x 2 back for the critics, again through them for the
    policy, 2 for the value and 2 for the policy, whose first layers have inputs without a gradient."""
    rows, hidden, z = size.tasks * size.rows, [size.width] * 3, size.latent
    q = products(rows, size.obs + size.action + z, *hidden, 1)
    v, v_inner = (products(rows, *sizes) for sizes in ((size.obs + z, *hidden, 1), (*hidden, 1)))
    p, p_inner = (products(rows, *s, 2 * size.action) for s in ((size.obs + z, *hidden), hidden))
    context, inner = size.tasks * size.context, [size.encoder_width] * 3
    e = products(context, size.obs + size.action + 1, *inner, 2 * z)
    e_inner = products(context, *inner, 2 * z)
    return (4 * q + 2 * v + p) + 4 * q + 4 * q + (v + v_inner) + (p + p_inner) + e + 2 * (e + e_inner)


def test_operations_of_the_published_organisation_are_those_counted_by_hand():
    assert executed(lambda: pearl_update.yardstick(SIZE).update(list(range(SIZE.tasks)))) == by_hand(SIZE)
    published = by_hand(pearl_update.PUBLISHED) / pearl_update.PUBLISHED.critic_pass
    assert 19 < published < 20, "7 F forward, 12 F back, and the encoder"


def test_no_network_is_passed_once_too_often():
    """8 passes forward (policy, 2 target critics, 2 critics; policy, 2 critics), 2 networks x 2 back for the critics;
    for the policy 2 back through the critics, without their weights' gradients, and 2 through itself."""
    count = executed(Updates(agent(*pearl_update.overrides(SIZE)))) / SIZE.critic_pass
    encoder = 3 * products(SIZE.tasks * SIZE.context, 5, 8, 8, 8, 6) / SIZE.critic_pass
    assert abs(count - 16 - encoder) < 0.5  # first layers differ by the latent's share; a pass too many would be 1


# --- the yardsticks ------------------------------------------------------------------------------------------------


def test_the_loop_over_tasks_computes_the_same_product_of_gaussians():
    looped = pearl_update.yardstick(SIZE)
    encoder = ProductOfGaussians(4, 1, 3, widths=(8, 8, 8), prior_factor=False)
    with torch.no_grad():
        for layer, weight, bias in zip(looped.encoder[::2], encoder.net.weights, encoder.net.biases, strict=True):
            weight[0], bias[0] = layer.weight, layer.bias
    data = torch.randn(4, 9, 5)
    mean, variance = looped.posterior(data)
    posterior = encoder.update(encoder.init(4), Context.of(data[..., :4], data[..., 4:])).posterior
    torch.testing.assert_close(mean, posterior.mean)
    torch.testing.assert_close(variance, posterior.variance)


def test_the_yardstick_trains_every_network_it_has():
    torch.manual_seed(0)
    looped = LoopedPEARL(2, 2, latent_dim=2, width=16, encoder_width=8, rl_batch=8, context_batch=8, tasks=2, rows=64)
    networks = {name: getattr(looped, name) for name in ("encoder", "q1", "q2", "v", "target_v", "policy")}

    def parameters() -> dict[str, Tensor]:
        return {name: parameters_to_vector(network.parameters()).detach() for name, network in networks.items()}

    before = parameters()
    looped.update([0, 1])
    moved = {name: float((after - before[name]).abs().amax()) for name, after in parameters().items()}
    target, learners = moved.pop("target_v"), moved
    # Adam's first step is the learning rate, in every parameter that has a gradient.
    assert learners == pytest.approx(dict.fromkeys(learners, 3e-4), rel=1e-2)
    assert target == pytest.approx(0.005 * 3e-4, rel=5e-2)


def test_pyro_and_the_written_out_loss_have_one_gradient():
    jobs = pearl_update.with_and_without_pyro(Updates(agent(*pearl_update.FEW_EPISODES)))
    gradients = []
    for job in jobs.values():
        torch.manual_seed(0)
        gradients.append(job())
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("make", "horizon"), [(collect.PointRobot, 20), (collect.Cheetah, 5)])
def test_the_one_by_one_sampler_returns_whole_episodes(make: Callable, horizon: int):
    sampler = collect.LoopedSampler(make, make.obs_dim, make.action_dim, latent_dim=5, width=8)
    path = sampler.episode(horizon)
    assert path["obs"].shape == path["next_obs"].shape == (horizon, make.obs_dim)
    assert (path["obs"][1:] == path["next_obs"][:-1]).all() and (path["obs"][1:] != path["obs"][:-1]).any()
    assert path["reward"].shape == (horizon,) and (path["reward"] < 0).all() and (abs(path["action"]) < 1).all()


# --- timing --------------------------------------------------------------------------------------------------------


def test_interleaving_runs_every_job_once_a_round_and_none_always_first():
    order: list[str] = []
    clock = iter(range(1000))
    jobs = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = interleave(jobs, 3, clock=lambda: float(next(clock)))
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert seconds == {name: Sample((1.0, 1.0, 1.0)) for name in "abc"}


def test_ratios_are_taken_round_by_round():
    fast, slow = Sample((1.0, 10.0, 2.0)), Sample((2.0, 20.0, 4.0))
    assert slow.over(fast) == Sample((2.0, 2.0, 2.0))
    assert Sample((3.0, 1.0, 2.0)).show(1) == "2.0 (1.0-3.0)" and Sample((1234.5,)).show(0) == "1,234 (1,234-1,234)"
    assert table(["", "x"], [["a", "1"]]) == "|  | x |\n| --- | --- |\n| a | 1 |\n"


def test_a_stopwatch_gives_each_piece_its_own_time_and_lets_go():
    class Work:
        def inner(self) -> int:
            return 1

        def outer(self) -> int:
            return self.inner() + self.inner()

    original = Work.outer
    with timing([("inner", Work, "inner"), ("outer", Work, "outer")]) as watch:
        ticks = iter([0.0, 1.0, 3.0, 4.0, 7.0, 10.0])  # outer starts; inner 1-3; inner 4-7; outer ends
        watch._clock = lambda: next(ticks)
        assert Work().outer() == 2
    assert watch.seconds == {"inner": 5.0, "outer": 5.0} and Work.outer is original
    with pytest.raises(AttributeError), timing([("gone", Work, "renamed")]):
        pass


def test_native_bf16_names_instructions_of_this_cpu():
    assert set(native_bf16()) <= {"avx512_bf16", "amx_bf16", "bf16"}


def test_inference_table_has_a_row_for_every_pair(capsys):
    names = {label.split(":")[0] for label in inference_table.rows()}
    assert names == set(inference_table.FAMILIES)
    inference_table.main(["normal_normal: exact"])
    header, _, row = capsys.readouterr().out.strip().split("\n")
    assert row.startswith("| normal_normal: exact |") and row.endswith("| passed |")
    assert header.count("|") == row.count("|")


def test_inference_table_measures_chains_by_their_draws():
    """The exact posterior under the label of chains: at the distance of two sets of draws, and as wide as itself."""
    family = inference_table.FAMILIES["normal_normal"]
    options = {"tasks": 20, "sizes": (10,), "queries": 0}
    row = inference_table.row("normal_normal: nuts", "normal_normal", lambda: family.exact, options)
    found = re.search(r"W (0\.\d+), sd ratio (\d\.\d+)", row)
    assert found and 0.05 < float(found[1]) < 0.25 and float(found[2]) == 1.0


# --- explorers -----------------------------------------------------------------------------------------------------


def test_idle_rides_and_what_codes_hold_of_idle_lines(capsys, monkeypatch):
    monkeypatch.setattr(exploration, "TRIALS", 8)
    family = Bus("distraction")
    quick = Schedule(trials=8, trials_per_iteration=16, batch=8, execute_after=8, explore_after=8, steps_per_update=200)
    with torch_seeded(0):
        agent = DREAM(family.spec, latent_dim=4, schedule=quick)
        agent.setup(family, 0)
        agent.step()
    exploration.dream("fresh-0", agent, family)
    exploration.permutations({"fresh-0": agent}, family)
    *_, cells = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if "fresh-0" in line]
    useful, idle, rate = (float(cell) for cell in cells[1:])
    assert 0 < useful <= 3.18 and 0 < idle <= math.log(53) - useful and rate > 0

    trials = agent.replay.sample(8, torch.Generator().manual_seed(0))
    episode = trials.explore
    episode.obs[..., :2], episode.mask[:] = 4.0, True  # nobody boards here
    episode.action[:] = 0
    found = Explored(trials.params, episode, torch.zeros(8), torch.zeros(8, episode.mask.shape[1] + 1))
    assert exploration.shown(found, family)[-1] == "0.000 ± 0.000"
    episode.obs[:, 0, :2], episode.action[:, :2, RIDE] = torch.tensor([5.0, 5.0]), 1.0  # here one line, and a move none
    assert exploration.shown(found, family)[-1] == "1.000 ± 0.000"


def test_exploring_end_to_end_takes_longer_by_a_factor_of_the_number_of_actions():
    """One that tells and one that is paid: found apart after some ``A`` and ``A^2`` trials, and together after more."""
    found = {actions: coupled_exploration.trials_needed(actions, 20) for actions in (4, 16)}
    for actions, result in found.items():
        apart, together = result["decoupled, exploration"], result["end to end, exploration"]
        assert apart.mean() < 4 * actions < together.mean()
        assert (result["decoupled, whole trial"] >= apart).all()
    grown = {name: found[16][name].mean() / found[4][name].mean() for name in found[4]}
    assert grown["decoupled, exploration"] < 8 < grown["end to end, exploration"]  # by A: 4, by A^2: 16


def test_exploration_is_worth_what_is_paid_after_it_or_what_it_tells():
    tables = coupled_exploration.Tables(3, 1, 0)
    tables.explored[0, 0], tables.explored[0, 1, 2] = torch.tensor([2.0, 1.0, 0.0]), 4.0
    tables.shown[0, 1, 0], tables.shown[0, 2, 1], tables.shown[0, 0, 2] = 2.0, 1.0, 4.0
    tables.done[0, 1, 0], tables.paid[0, 1, 0] = 2.0, 2.0  # told 0 and did 0, twice
    tables.done[0, 0], tables.paid[0, 0, 2] = torch.tensor([1.0, 1.0, 2.0]), 1.0
    torch.testing.assert_close(tables.end_to_end(), torch.tensor([[2 / 3, 0.5, 0.0]]))
    before = torch.tensor([3 / 10, 2 / 10, 5 / 10])
    told = (2 * torch.log(3 / 5 / before[0]) + torch.log(2 / 4 / before[1])) / 3
    torch.testing.assert_close(
        tables.decoupled(), torch.stack([told, torch.log(5 / 7 / before[2]), torch.zeros(())]).unsqueeze(0)
    )
