"""Diagnosing agents of worlds: with an exact belief about the code everything is right, with wrong ones it is not."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from matplotlib.text import Annotation

from bayesmeta.algorithms.dream import DREAM
from bayesmeta.algorithms.e_rl2 import ERL2
from bayesmeta.diagnostics import exploration_figures, figures, worlds
from bayesmeta.diagnostics.codes import CodeBelief, CodePosterior
from bayesmeta.diagnostics.report import report
from bayesmeta.diagnostics.results import array, attribute, load, save
from bayesmeta.diagnostics.run import diagnose, results_of
from bayesmeta.diagnostics.verdict import verdicts
from bayesmeta.diagnostics.worlds import implied_group, judged_split
from bayesmeta.inference.beliefs import Weighted
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.runs import build
from bayesmeta.tasks.bus import Bus, SmallMap
from bayesmeta.tasks.cooking import Cooking
from bayesmeta.tasks.reveal import Reveal
from bayesmeta.train import Evaluating, Saving, train
from bayesmeta.types import Explorer

RIGHT, END, RIDE = 2, 6, 5
DIM = 4
FAMILY = SmallMap()


class Told(torch.nn.Module):
    """Codes of 24 problems that do not overlap: each a point of a lattice, with a standard deviation of 0.1."""

    def forward(self, params):
        digits = torch.cat([params // 8, params // 4 % 2, params // 2 % 2, params % 2], 1)
        return dist.Normal(4.0 * digits, torch.full_like(digits, 0.1), validate_args=False).to_event(1)


class Scripted:
    """Explores by a list of actions."""

    def __init__(self, actions):
        self.actions = actions

    def begin(self, batch):
        return 0

    def act(self, obs, previous, z, memory):
        row = torch.eye(9)[self.actions[min(memory, len(self.actions) - 1)]]
        return dist.OneHotCategorical(row.expand(len(obs), -1)), memory + 1


class Exact(DREAM):
    """Its codes are told apart, its belief is exact, and it explores one line: six of 24 problems are left."""

    def __init__(self, belief=None, actions=(RIGHT, RIDE, END)):
        with torch_seeded(0):
            super().__init__(FAMILY.spec, latent_dim=DIM)
        self.told = Told()
        problems = FAMILY.posterior_over("train")
        self.inference = (belief or CodePosterior)(problems, self.told(problems.points))
        self.actions = actions

    @property
    def explorer(self):
        return Explorer(lambda obs, z: dist.OneHotCategorical(torch.eye(9)[4].expand(len(obs), -1)), reads="mean",
                        exploration=Scripted(self.actions))  # fmt: skip


class Changed(CodePosterior):
    """An exact belief about the problem, wrongly reported: ``change(log_weights)``."""

    def __init__(self, problems, code, change):
        super().__init__(problems, code)
        self.change = change

    def _wrong(self, belief):
        w = belief.problems
        return CodeBelief(Weighted(w.points, self.change(w.log_weights.log_softmax(-1)), w.cell), belief.code)

    def init(self, batch):
        return Reported(super().init(batch), self._wrong)

    def update(self, belief, data):
        return Reported(super().update(belief.exact, data), self._wrong)

    def scan(self, belief, data):
        return Reported(super().scan(belief.exact, data), self._wrong)


class Reported:
    """The exact belief, and what is said of it."""

    def __init__(self, exact, report):
        self.exact, self.posterior = exact, report(exact).posterior


def changed(change):
    return lambda problems, code: Changed(problems, code, change)


@pytest.fixture(scope="module")
def exact():
    return results_of(Exact(), FAMILY, tasks=60, episodes=2, draws=100)


def verdict(tree, words):
    (found,) = [verdict for verdict in verdicts(tree) if words in verdict.question]
    return found


def test_exploration_is_what_was_done_and_what_it_told(exact):
    group = exact["exploration"].to_dataset()
    assert group["context_step"].to_numpy().tolist() == [0, 1, 2, 3]
    told = np.array([0.0, 0.0, math.log(4), math.log(4)])
    np.testing.assert_allclose(group["exact_nats"].to_numpy(), np.repeat(told[:, None], 60, 1), atol=1e-5)
    assert (group["action"].to_numpy().T == [-1, RIGHT, RIDE, END]).all() and group["real"].to_numpy().all()
    state = group["state"].to_numpy()
    assert (state[0] == (2, 2)).all() and (state[1] == (3, 2)).all() and len(np.unique(state[2], axis=0)) == 4
    problem = group["problem"].to_numpy()
    np.testing.assert_array_equal(problem, array(exact, "constant_data", "problem_true"))
    corners = np.array([FAMILY.city.lines[p][1][1] for p in problem])  # the second stop is the one to the right
    np.testing.assert_array_equal(state[2], corners)
    weights = group["exact_probability"].to_numpy()
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert set(np.round(6 * weights[3], 4).ravel()) == {0.0, 1.0}


def test_an_exact_belief_is_exact_at_every_step(exact):
    group, distance = exact["exploration"].to_dataset(), exact["distance"].to_dataset()
    kl, nats = group["kl"].to_numpy(), group["nats"].to_numpy()
    assert (kl[:2].mean(1) < 2 * 23 / 800).all() and (kl[2:].mean(1) < 2 * 5 / 800 + 0.01).all()  # noise of 400 draws
    np.testing.assert_allclose(nats.mean(1), group["exact_nats"].to_numpy().mean(1), atol=0.15)
    np.testing.assert_allclose(distance["kl_reference"].to_numpy(), 0, atol=1e-5)
    np.testing.assert_allclose(distance["mean_error"].to_numpy(), 0, atol=1e-5)
    np.testing.assert_allclose(distance["sd_ratio"].to_numpy(), 1, atol=1e-5)
    assert array(exact, "calibration", "p_value").shape == (4, DIM + 2)
    assert verdict(exact, "belief calibrated").outcome == "passed"
    assert verdict(exact, "know what its exploration told").outcome == "note"
    assert verdict(exact, "find out which problem").found.startswith("1.39 nats [1.39, 1.39] of log 24 = 3.18")
    assert verdict(exact, "find out which problem").outcome == "passed"


def test_nats_of_the_code_are_those_of_the_problem_where_codes_tell_problems_apart(exact):
    """And they add up to the bonus and its cost no more than they: a belief begins with what all problems say."""
    group = exact["exploration"].to_dataset()
    np.testing.assert_allclose(group["code_nats"].to_numpy(), group["exact_nats"].to_numpy(), atol=1e-4)
    assert attribute(exact, "bonus_unit") == "shares of the code" and not group["bonus"].to_numpy()[0].any()
    np.testing.assert_allclose(group["bonus"].to_numpy()[[1, 3]], -0.02, atol=1e-5)  # the moments stay: the cost alone


@pytest.mark.parametrize("fault", ["blind", "wrong", "sure"])
def test_wrong_beliefs_are_found(fault):
    """One that ignores what is seen, one that means another problem, one that is sure too early."""
    faults = {
        "blind": lambda w: torch.zeros_like(w),
        "wrong": lambda w: w.roll(1, -1),
        "sure": lambda w: torch.where(torch.arange(24) == w.argmax(-1, keepdim=True), 0.0, -9.0),
    }
    tree = results_of(Exact(changed(faults[fault])), FAMILY, tasks=60, episodes=2, draws=100)
    group = tree["exploration"].to_dataset()
    kl = group["kl"].to_numpy().mean(1)
    assert kl[-1] > 1
    assert array(tree, "distance", "kl_reference").mean(1)[-1] > 0.5
    if fault == "blind":  # what is not seen by ranks of the coordinates
        assert kl[0] < 0.06 and abs(float(group["nats"].to_numpy()[-1].mean())) < 0.2
        assert kl[-1] == pytest.approx(math.log(4), abs=0.1)
    if fault == "wrong":
        assert verdict(tree, "belief calibrated").outcome == "failed"
    if fault == "sure":
        assert verdict(tree, "belief calibrated").outcome == "failed"
        assert float(group["ece"].to_numpy()[0]) > 0.8 > 8 * float(group["exact_ece"].to_numpy()[0])


def test_a_belief_that_has_been_told_is_found_out():
    """It holds more of the problem than its exploration told, on average, which no inference can."""
    agent = Exact()
    true = []

    class Leaking(CodePosterior):
        def update(self, belief, data):
            told = super().update(belief, data)
            weights = torch.full_like(told.problems.log_weights, -30.0)
            return CodeBelief(
                Weighted(told.problems.points, weights.scatter(1, true[-1].unsqueeze(1), 0.0), told.problems.cell),
                told.code,
            )

    agent.inference = Leaking(agent.inference.problems, agent.inference.code)
    sample = FAMILY.sample

    class Spied(SmallMap.func):
        def sample(self, n, split, generator):
            params = sample(n, split, generator)
            true.append(params.squeeze(1).long())
            return params

    tree = results_of(agent, Spied("small_map"), tasks=20, episodes=2, draws=30)
    found = verdict(tree, "know what its exploration told")
    assert found.outcome == "failed" and "it holds 3.18 nats of the problem, the exact posterior 1.39" in found.found


def test_no_belief_holds_more_on_average_than_the_exact_posterior():
    """Gibbs' inequality over all problems, for odds of any kind that depend on what was seen."""
    generator = torch.Generator().manual_seed(0)
    seen = torch.arange(24) // 6  # what exploration shows
    exact = torch.where(seen == seen.unsqueeze(1), 0.0, -torch.inf).log_softmax(-1).unsqueeze(0)
    for spread in (0.1, 1.0, 10.0):
        odds = (spread * torch.randn(4, 24, generator=generator))[seen].log_softmax(-1).unsqueeze(0)
        group = implied_group(odds, exact, torch.arange(24))
        assert group["nats"].mean() <= math.log(4) + 1e-6
        gap = math.log(4) - float(group["nats"].mean())
        assert float(group["kl"].mean()) == pytest.approx(gap, rel=1e-4)  # the problem is drawn from the exact one


def test_implied_group_by_hand():
    implied = torch.tensor([[[0.8, 0.2], [0.8, 0.2]]]).log()
    exact = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]]).log()
    group = implied_group(implied, exact, torch.tensor([0, 1]))
    np.testing.assert_allclose(group["nats"], [[math.log(1.6), math.log(0.4)]], rtol=1e-5)
    np.testing.assert_allclose(group["kl"], [[0.5 * math.log(0.5 / 0.8 * 0.5 / 0.2), math.log(1 / 0.8)]], rtol=1e-5)
    assert float(group["ece"][0]) == pytest.approx(0.3) and group["count"].to_numpy().sum() == 2
    # The exact one says 0.5 of the first problem in task 0, which it is, and 1.0 of it in task 1, which it is not.
    assert float(group["exact_ece"][0]) == pytest.approx((0.5 + 1.0) / 2)


def test_returns_are_of_the_paid_episodes(exact):
    (axes,) = figures.adaptation(exact).axes
    lines = {str(line.get_label()): np.asarray(line.get_ydata(), float) for line in axes.lines}
    assert lines["mean, 95 % interval"] == pytest.approx([-3.0]) and axes.get_xticks().tolist() == [2]
    assert lines["oracle: told the task"] == pytest.approx([0.7, 0.7])
    assert lines["without knowing the task"] == pytest.approx([0.1, 0.1])
    for name, label in (("redrawn", "drawn anew when contradicted"), ("kept", "one draw an episode")):
        expected = array(exact, "trajectory", f"reference_thompson_{name}").mean()
        assert lines[f"exact posterior sampling, {label}"] == pytest.approx([expected, expected])
    assert verdict(exact, "worth anything").outcome == "failed"  # it does nothing with it
    assert not any("as it adapts" in found.question for found in verdicts(exact))


def test_paths_are_annotated_with_what_each_step_was_paid(exact):
    figure = exploration_figures.paths(exact, FAMILY)
    group = exact["exploration"].to_dataset()
    bonus, state = group["bonus"].to_numpy(), group["state"].to_numpy()
    assert len(figure.axes) == 3
    for axes in figure.axes:
        title = axes.get_title(loc="left") or axes.get_title()
        task = int(title.split(":")[0].removeprefix("task "))
        assert title == f"task {task}: 1.39 nats in 3 steps"
        x, y = state[2, task]
        found = {
            text.get_text(): (text.xy, text.get_fontweight()) for text in axes.texts if isinstance(text, Annotation)
        }
        assert found == {  # rows are counted from above
            f"1: {bonus[1, task]:+.2f}": ((3, 2), "normal"),
            f"2: {bonus[2, task]:+.2f}": ((x, 4 - y), "bold"),
            f"3: {bonus[3, task]:+.2f}": ((x, 4 - y), "normal"),
        }


def test_figures_of_what_was_recovered(exact):
    (axes,) = exploration_figures.recovered(exact).axes
    lines = {str(line.get_label()): np.asarray(line.get_ydata(), float) for line in axes.lines}
    np.testing.assert_allclose(lines["exact posterior"], [0, 0, math.log(4), math.log(4)], atol=1e-5)
    np.testing.assert_allclose(lines["belief"], array(exact, "exploration", "nats").mean(1), rtol=1e-6)
    assert lines["log 24: all there is to know"][0] == pytest.approx(math.log(24))
    (axes,) = exploration_figures.divergence(exact).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), array(exact, "exploration", "kl").mean(1), rtol=1e-6)
    (axes,) = exploration_figures.certainty(exact).axes
    assert len(axes.collections) == 4 and axes.get_legend() is not None


def test_the_report_says_what_to_look_for(exact, unpainted):
    page = report(exact, FAMILY)
    for words in ("The agent is not told the problem", "60 test tasks", "Exploration", "never more than the dashed"):
        assert words in page
    assert "RMSE decoded" not in page and "coloured by its true parameters: dots of one colour" in page
    assert page.count("<figure") > 10


@pytest.mark.parametrize("kind, world", [(DREAM, "bus"), (DREAM, "kitchen"), (ERL2, "bus")])
def test_problems_that_were_not_trained_on_stand_beside(kind, world, tmp_path, unpainted):
    family = Bus("distraction", horizon=3) if world == "bus" else Cooking(horizon=2)
    assert judged_split(family) == "train" and judged_split(FAMILY) == "test"
    with torch_seeded(0):
        agent = kind(family.spec, **({"latent_dim": DIM} if kind is DREAM else {"memory": DIM}))
    tree = load(save(results_of(agent, family, tasks=10, episodes=2, draws=10), tmp_path / "results.nc"))
    train, test = (set(family.identifiers(split).squeeze(1).tolist()) for split in ("train", "test"))
    assert set(array(tree, "constant_data", "problem_true").tolist()) <= train
    assert set(array(tree, "unseen", "problem")[:, 0].tolist()) <= test
    assert array(tree, "unseen", "return").shape == (10, 2) and attribute(tree, "split") == "train"
    assert {"calibration", "distance"} <= set(tree.children) or kind is ERL2
    assert ("kl" in tree["exploration"].data_vars) == (kind is DREAM)
    assert "not trained on" in verdict(tree, "was not trained on").question
    page = report(tree, family)
    assert "problems not trained on" in page and ("likeliest" in page) == (kind is DREAM)


def test_a_world_without_places_lists_its_steps():
    family = Reveal()
    with torch_seeded(0):
        agent = DREAM(family.spec, latent_dim=DIM, bottleneck="hinge")
    tree = results_of(agent, family, tasks=10, episodes=2, draws=10)
    assert attribute(tree, "bonus_unit") == "squared distance"
    axes = exploration_figures.paths(tree, family).axes[0]
    action = int(array(tree, "exploration", "action")[1, 0])
    paid = float(array(tree, "exploration", "bonus")[1, 0])
    assert axes.get_xlabel() == f"1. {family.action_names[action]}: {paid:+.2f}"


def test_the_file_keeps_fewer_draws_where_they_are_many(monkeypatch):
    monkeypatch.setattr(worlds, "MAX_NUMBERS", 4 * 10 * DIM * 7)
    tree = results_of(Exact(), FAMILY, tasks=10, episodes=2, draws=20)
    assert tree["posterior"].sizes["draw"] == tree["sample_stats"].sizes["draw"] == 7
    assert array(tree, "prior_sbc", "z").shape[1] == 10


def test_an_episode_of_exploration_alone_is_refused():
    with pytest.raises(ValueError, match=r"episodes = 1: expected at least 2, one of exploration and one that is paid"):
        results_of(Exact(), FAMILY, tasks=10, episodes=1)


def test_a_run_from_training_to_report(tmp_path, unpainted, capsys):
    quick = {"trials": 16, "trials_per_iteration": 32, "batch": 8, "execute_after": 16, "explore_after": 16}
    config = {
        "seed": 0,
        "task": {"_target_": "bayesmeta.tasks.bus.Bus", "variant": "small_map"},
        "algorithm": {
            **{"_target_": "bayesmeta.algorithms.dream.DREAM", "_partial_": True, "latent_dim": DIM},
            "schedule": {"_target_": "bayesmeta.rl.q_learner.Schedule", **quick, "steps_per_update": 32},
        },
        "eval": {"episodes": 2},
    }
    with torch_seeded(0):
        algorithm, family = build(config)
        train(
            algorithm, family, iterations=1, run_dir=tmp_path / "run", config=config, progress="quiet",
            evaluating=Evaluating(1, 4, 2), saving=Saving(), tensorboard=False,
        )  # fmt: skip
    diagnose(tmp_path / "run", tasks=10, draws=10)
    printed = capsys.readouterr().out
    assert "Does the belief know what its exploration told?" in printed and "calibration error" in printed
    tree = load(tmp_path / "run" / "diagnostics" / "results.nc")
    assert attribute(tree, "config")["task"]["variant"] == "small_map" and attribute(tree, "split") == "test"
    steps = tree["exploration"].sizes["context_step"]
    assert steps <= 11 and array(tree, "posterior", "z").shape == (1, 10, steps, 10, DIM)
    assert "Explorations of a few problems" in (tmp_path / "run" / "diagnostics" / "report.html").read_text()
