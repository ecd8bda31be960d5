"""DREAM: bonuses that telescope, losses that are the ELBO's, and gradients that are zero where they must be."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch.distributions import OneHotCategorical, kl_divergence

from bayesmeta.algorithms.dream import DREAM, _Informed
from bayesmeta.collect import collect
from bayesmeta.evaluate import evaluate
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.rl.q_learner import Schedule
from bayesmeta.tasks.bus import SmallMap
from bayesmeta.trial_replay import Trials
from bayesmeta.types import Spec

FAMILY = SmallMap()
QUICK = Schedule(trials=16, trials_per_iteration=32, batch=8, execute_after=16, explore_after=16, steps_per_update=32)
FORMS = ["kl", "hinge"]


def agent(seed=0, **options) -> DREAM:
    with torch_seeded(seed):
        algorithm = DREAM(FAMILY.spec, **{"latent_dim": 6, "schedule": QUICK, **options})
    algorithm.setup(FAMILY, seed)
    return algorithm


@pytest.fixture(params=FORMS)
def trained(request) -> DREAM:
    algorithm = agent(bottleneck=request.param)
    with torch_seeded(1):
        algorithm.step()
    return algorithm


def batch(algorithm: DREAM, count=12) -> Trials:
    return algorithm.replay.sample(count, torch.Generator().manual_seed(3))


def test_bonuses_telescope_to_what_the_whole_trajectory_told(trained):
    trials = batch(trained)
    code = trained.told(trials.params)
    start = trained.inference.init(12)
    end = trained.inference.update(start, trials.explore.context(next_obs=True))
    nats = [-(code.entropy() + kl_divergence(code, b.posterior)) for b in (start, end)]  # E_code log q
    steps = trials.explore.mask.sum(1)
    expected = trained.nat(code) * (nats[1] - nats[0]) - trained.cost * steps
    found = trained.bonus(trials)
    assert steps.min() < steps.max()
    torch.testing.assert_close(found.sum(1), expected, rtol=1e-4, atol=1e-4)
    assert not found[~trials.explore.mask].any()


def test_prices_grow_during_the_warm_up_and_stay():
    algorithm = agent(warmup=10, cost=0.5, kl_weight=0.3)
    with torch_seeded(1):
        algorithm.step()
    trials = batch(algorithm)
    steps = trials.explore.mask.float()
    algorithm.execute.made = 10**6
    full = algorithm.bonus(trials)
    for made, share in ((0, 0.1), (4, 0.5), (9, 1.0), (50, 1.0)):
        algorithm.execute.made = made
        torch.testing.assert_close(algorithm.bonus(trials) - full, 0.5 * (1 - share) * steps)
        with torch_seeded(5):
            algorithm._updates(algorithm.execute, algorithm.execution_loss, 0)
        assert algorithm._model.kl_weight == pytest.approx(0.3 * share)


def test_the_final_prices_and_rate_are_their_own():
    final = {"final_kl_weight": 2.0, "final_cost": 0.7, "final_lr": 1e-5, "final_after": 1000}
    algorithm = agent(warmup=2000, kl_weight=0.3, cost=0.1, **final)
    with torch_seeded(1):
        algorithm.step()
    trials = batch(algorithm)
    algorithm.execute.made = 499
    before = algorithm.bonus(trials)
    for made, price, dearer, lr in ((499, 0.075, 0.0, 1e-4), (1000, 2.0, 0.675, 1e-5), (5000, 2.0, 0.675, 1e-5)):
        algorithm.execute.made = made
        torch.testing.assert_close(before - algorithm.bonus(trials), dearer * trials.explore.mask.float())
        with torch_seeded(5):
            algorithm._updates(algorithm.execute, algorithm.execution_loss, 0)
            algorithm.execute.made = made
            algorithm._updates(algorithm.explore, algorithm.exploration_loss, 0)
        assert algorithm._model.kl_weight == pytest.approx(price)
        for learner in (algorithm.execute, algorithm.explore):
            assert [group["lr"] for group in learner.optimizer.param_groups] == [lr]


def test_execution_and_belief_decay_and_codes_and_exploration_do_not():
    algorithm = agent(weight_decay=0.5)
    decayed = {id(p) for p in algorithm.execute.decayed}
    assert algorithm.execute.weight_decay == 0.5 and algorithm.explore.weight_decay == 0.0
    for module, falls in ((algorithm.execute.q, True), (algorithm.inference, True), (algorithm.told, False)):
        assert {id(p) in decayed for p in module.parameters()} == {falls}


def test_bonuses_are_shares_of_what_the_codes_hold():
    algorithm = agent(cost=0.0)
    with torch_seeded(1):
        algorithm.step()
    trials = batch(algorithm)
    code = algorithm.told(trials.params)
    held = kl_divergence(code, algorithm._prior(12)).mean()
    assert held > 2
    start = algorithm.inference.init(12)
    end = algorithm.inference.update(start, trials.explore.context(next_obs=True))
    gained = kl_divergence(code, start.posterior) - kl_divergence(code, end.posterior)
    torch.testing.assert_close(algorithm.bonus(trials).sum(1) * held, gained, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        algorithm.told.layers[-1].weight.zero_()
        algorithm.told.layers[-1].bias.copy_(torch.tensor([0.0] * 6 + [20.0] * 6))  # N(0, 1), whatever the task
    assert algorithm.nat(algorithm.told(trials.params)) == 1.0


def test_published_bonuses_are_differences_of_squared_distances():
    algorithm = agent(bottleneck="hinge", cost=0.1)
    with torch_seeded(1):
        algorithm.step()
    trials = batch(algorithm)
    belief, context = algorithm.inference.init(12), trials.explore.context(next_obs=True)
    means = [belief.mean]
    for t in range(context.size):
        belief = algorithm.inference.update(belief, context.rows(t, t + 1))
        means.append(belief.mean)
    distance = (algorithm.told(trials.params).mean.unsqueeze(0) - torch.stack(means)).square().sum(-1).T
    expected = (distance[:, :-1] - distance[:, 1:] - 0.1).masked_fill(~trials.explore.mask, 0.0)
    torch.testing.assert_close(algorithm.bonus(trials), expected, rtol=1e-3, atol=1e-4)


def test_bonuses_are_relabelled_with_the_latest_code_and_belief(trained):
    trials = batch(trained)
    before = trained.bonus(trials)
    with torch.no_grad():
        trained.told.layers[-1].bias.add_(0.5)
    assert not torch.allclose(trained.bonus(trials), before)


def test_the_objective_is_the_elbo_of_the_td_error():
    algorithm = agent(kl_weight=0.3)
    with torch_seeded(1):
        algorithm.step()
    trials = batch(algorithm)
    with torch_seeded(5):
        parts = algorithm.execution_loss(trials)
    code = algorithm.told(trials.params)
    scanned = algorithm.inference.update(algorithm.inference.init(12), trials.explore.context(next_obs=True))
    with torch_seeded(5):
        z = code.rsample()
    every_second = torch.arange(12) % 2 == 1
    z = torch.where(every_second.unsqueeze(1), scanned.mean, z)
    execute = algorithm.execute
    td = algorithm._td(execute, trials.execute, trials.execute.reward, z).mean()
    prior = algorithm._prior(12)
    kl = kl_divergence(code, prior).mean()
    torch.testing.assert_close(parts["execution_loss"], td + 0.3 * kl, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts["code_nats"], kl, rtol=1e-5, atol=1e-5)


def test_the_belief_is_trained_at_every_prefix_by_draws_of_the_code(trained):
    trials = batch(trained)
    code = trained.told(trials.params)
    context, nats = trials.explore.context(next_obs=True), []
    for n in range(context.size + 1):
        belief = trained.inference.update(trained.inference.init(12), context.rows(0, n)).posterior
        real = trials.explore.mask[:, n - 1] if n else torch.ones(12, dtype=torch.bool)
        nats.append((code.entropy() + kl_divergence(code, belief))[real])
    expected = trained.unit * torch.cat(nats).mean()
    torch.testing.assert_close(trained.execution_loss(trials)["decoder_loss"], expected, rtol=1e-4, atol=1e-4)


def gradients(loss, module):
    found = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, retain_graph=True)
    return sum(0.0 if g is None else float(g.abs().sum()) for g in found)


def test_gradients_go_where_they_must_and_nowhere_else(trained):
    trials = batch(trained)
    parts = trained.execution_loss(trials)
    assert gradients(parts["decoder_loss"], trained.inference) > 0
    assert gradients(parts["decoder_loss"], trained.told) == 0  # the code is what the belief is trained to find
    assert gradients(parts["decoder_loss"], trained.execute.q) == 0
    for module in (trained.told, trained.inference, trained.execute.q):
        assert gradients(parts["execution_loss"], module) > 0
    assert gradients(parts["loss"], trained.explore.q) == 0
    assert not any(
        p.requires_grad for learner in (trained.execute, trained.explore) for p in learner.target.parameters()
    )
    explored = trained.exploration_loss(trained.relabelled(trials))["loss"]
    assert gradients(explored, trained.explore.q) > 0
    for module in (trained.told, trained.inference, trained.execute.q):
        assert gradients(explored, module) == 0


def test_the_td_error_reaches_the_code_of_the_told_tasks_and_the_belief_of_the_others(trained):
    trials = batch(trained)
    code = torch.zeros(12, 6, requires_grad=True)
    inferred = torch.zeros(12, 6, requires_grad=True)
    factor = trained._factor(code, (trials.execute, inferred)).sum()
    by_code, by_belief = torch.autograd.grad(factor, (code, inferred))
    told = torch.arange(12) % 2 == 0
    assert not by_code[~told].any() and by_code[told].any()
    assert not by_belief[told].any() and by_belief[~told].any()


def test_the_hinge_is_free_below_its_bound_and_pulls_above():
    for hinge, pulled in ((1e6, False), (0.0, True)):
        algorithm = agent(bottleneck="hinge", hinge=hinge)
        with torch_seeded(1):
            algorithm.step()
        trials = batch(algorithm)
        with torch_seeded(5):
            parts = algorithm.execution_loss(trials)
        with torch_seeded(5):
            z = algorithm.told(trials.params).rsample()
        context = trials.explore.context(next_obs=True)
        inferred = algorithm.inference.update(algorithm.inference.init(12), context).mean
        td = -algorithm._factor(z, (trials.execute, inferred)).mean()
        penalty = parts["execution_loss"] - td
        mean = algorithm.told(trials.params).mean.square().sum(-1).mean()
        torch.testing.assert_close(penalty, mean if pulled else torch.tensor(hinge), rtol=1e-5, atol=1e-4)


def test_exploration_sees_neither_instruction_nor_reward_nor_task():
    algorithm = agent()
    with torch_seeded(1):
        algorithm.step()
    explored = batch(algorithm, 30).explore
    assert not explored.obs[..., -1].any() and not explored.next_obs[..., -1].any() and not explored.reward.any()
    actions = []
    for task in (0.0, 17.0):  # the same seed in two tasks: the same steps as long as the same is seen
        rollout = evaluate(algorithm, FAMILY, torch.full((4, 1), task), episodes=2, seed=0)
        actions.append(rollout.episodes[0].action[:, 0])
    assert torch.equal(*actions)


def test_some_tasks_are_executed_by_their_code_and_the_others_by_the_belief():
    read = []

    class Spying:
        def begin(self, batch):
            return None

        def act(self, obs, previous, z, memory):
            read.append(z)
            return OneHotCategorical(torch.ones(4, 9)), memory

    told = torch.tensor([[True], [False], [True], [False]])
    _Informed(Spying(), torch.ones(4, 2), told).act(torch.zeros(4, 5), torch.zeros(4, 9), torch.zeros(4, 2), None)
    assert read[0].tolist() == [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]


def test_who_is_told_executes_by_the_code_and_explores_all_the_same(trained):
    params = FAMILY.identifiers("train")
    told, itself = (
        collect(FAMILY.env(params), explorer, trained.inference, FAMILY.spec, episodes=2, seed=0)
        for explorer in (trained.informed(params), trained.explorer)
    )
    assert torch.equal(told.episodes[0].action, itself.episodes[0].action)
    memory, q = trained.execute.q.begin(24), trained.execute.q
    first = told.episodes[1]
    values, _ = q.step(first.obs[:, 0], torch.zeros(24, 9), trained.told(params).mean, memory)
    assert torch.equal(values.argmax(-1), first.action[:, 0].argmax(-1))


def test_several_executions_share_one_belief():
    algorithm = agent(execution_episodes=3)
    rollout = evaluate(algorithm, FAMILY, FAMILY.identifiers("test"), episodes=4)
    assert torch.equal(rollout.latents[:, 1], rollout.latents[:, 2])
    assert torch.equal(rollout.latents[:, 1], rollout.latents[:, 3])
    with torch_seeded(1):
        algorithm._collect()
    assert algorithm.replay.added == 3 * 16


SCHEDULE = Schedule(trials=16, trials_per_iteration=32, batch=8, execute_after=16, explore_after=16)
STOPPED = {"epsilon": 0.05, "collect/exploration_steps": 1.0, "collect/bonus": -0.02, "execute/code_nats": 0.01}


def looked(algorithm, **means) -> None:
    for _ in range(3):
        algorithm._look_for_collapse({**STOPPED, **means})


def test_an_exploration_that_gives_up_is_reported_once_with_what_to_change():
    algorithm = agent(schedule=SCHEDULE)
    algorithm.replay.added = 10**4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        looked(algorithm, epsilon=1.0)  # at random
        looked(algorithm, **{"collect/bonus": 3.0})  # one step tells all
        looked(algorithm, **{"collect/exploration_steps": 3.0})
        algorithm._look_for_collapse(STOPPED)  # for an iteration or two
        algorithm._look_for_collapse(STOPPED)
    with pytest.warns(UserWarning, match=r"exploration ends after 1\.0 steps, as .* tells 0 of .* lower kl_weight"):
        algorithm._look_for_collapse(STOPPED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        looked(algorithm)


@pytest.mark.parametrize("epsilon", [0.3, 0.8])
def test_an_exploration_that_gives_up_is_told_from_one_that_acts_at_random(epsilon):
    """However high the rate of random actions still is, of which few end an episode."""
    algorithm = agent(schedule=replace(SCHEDULE, trials=512, trials_per_iteration=512))
    algorithm.setup(FAMILY, 0)
    algorithm.explore.begun_at = -round((1.0 - epsilon) / 0.99 * algorithm.schedule.epsilon_steps)
    best = torch.full((1 + FAMILY.spec.actions,), -1.0)
    for action, ends in (("end", True), ("stay", False)):
        with torch.no_grad():
            algorithm.explore.q.values.weight.zero_()
            algorithm.explore.q.values.bias.copy_(best).select(0, 1 + FAMILY.action_names.index(action)).fill_(1.0)
        algorithm.explore.steps = 0
        with torch_seeded(0):
            found = algorithm._collect()
        assert found["epsilon"] == pytest.approx(epsilon, abs=1e-4)
        algorithm._warned, algorithm._given_up = False, 0
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            looked(algorithm, **{**found, "collect/bonus": -algorithm.cost * found["collect/exploration_steps"]})
        assert bool(caught) == ends


def test_checkpoints_of_the_explorer_hold_nothing_of_code_and_belief(trained):
    names = trained.state_dict()["explore"]["q"]
    assert not any("told" in name or "read" in name for name in names)
    parameters = {id(p) for p in trained.explore.parameters}
    assert not parameters & {id(p) for module in (trained.told, trained.inference) for p in module.parameters()}
    assert not parameters & {id(p) for p in trained.explore.target.parameters()}


def test_other_families_are_refused():
    spec = Spec.control("line", obs_dim=2, action_dim=1, horizon=3, param_names=("p",))
    with pytest.raises(ValueError, match="DREAM needs a control family with discrete actions and episodes free of"):
        DREAM(spec)
