"""The page: whole by itself, readable without its pictures, and its pictures show the numbers of the results."""

import base64
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

from bayesmeta.diagnostics import figures, navigation
from bayesmeta.diagnostics.figures import density, principal_plane
from bayesmeta.diagnostics.plotting import STYLE, rendered
from bayesmeta.diagnostics.report import report, write_report
from bayesmeta.diagnostics.results import array
from bayesmeta.diagnostics.truth import exact_posterior
from bayesmeta.diagnostics.verdict import passed, verdicts
from bayesmeta.folder import RunFolder


class Page(HTMLParser):
    """Images, headings and whether every element is closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.images, self.links, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.links += [values[name] for name in ("href", "src") if name in values]
        if tag == "img":
            self.images.append(values)
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if not {"style", "script"} & set(self.open) else ""


@pytest.fixture(scope="module")
def source(trial):
    return report(trial[2], trial[0])


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_the_page_needs_nothing_else(source, page):
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert source.isascii() and "<script" not in source and not re.search(r"url\(|@import|https?:", source)


def test_every_figure_is_a_picture_with_words(page):
    assert len(page.images) >= 8
    for image in page.images:
        assert len(image["alt"]) > 30
        assert base64.b64decode(image["src"].split(",")[1])[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_page_says_what_was_found(trial, page):
    tree = trial[2]
    for heading in ("What was found", "Behaviour", "What is known after how much data", "The latent"):
        assert heading in page.text
    assert "PEARL on point_goal-v1" in page.text and "10 unseen test tasks, 2 episodes each" in page.text
    for value in array(tree, "trajectory", "return").mean(0):
        assert f"{value:.3g}" in page.text
        assert any(f"{value:.3g}" in image["alt"] for image in page.images)
    for verdict in verdicts(tree):
        assert verdict.question in page.text and verdict.found in page.text and verdict.outcome in page.text
    for word in ("Contraction", "Active dimension", "Oracle", "95 % interval"):
        assert word in page.text


def test_a_report_of_a_supervised_procedure(gaussian, unpainted):
    page = Page(report(gaussian[3]))
    assert "ConjugateGaussian on linear_gaussian-v1" in page.text and "Behaviour" not in page.text
    assert len(page.images) == 7
    (axes,) = figures.learned_and_exact(gaussian[3]).axes
    assert axes.get_xlabel() == "data seen" and len(lines(axes)) == 4


def test_markup_in_the_results_is_text(gaussian, unpainted):
    tree = gaussian[3].copy()
    tree.attrs = {**tree.attrs, "algorithm": "<script>alert(1)</script>"}
    assert "<script" not in report(tree)


def test_learning_curve_from_the_run(trial, tmp_path, unpainted):
    run = RunFolder(tmp_path)
    run.evaluation.mkdir()
    lines = [f'{{"iteration": {i}, "returns": [-9, {-8 + i}], "standard_error": [1, 1]}}\n' for i in (1, 2)]
    (run.evaluation / "returns.jsonl").write_text("".join(lines))
    run.metrics.write_text("".join(f'{{"iteration": {i}, "env_steps": {1000 * i}}}\n' for i in (1, 2)))
    file = write_report(trial[2], tmp_path / "report.html", run=run)
    page = Page(file.read_text())
    assert any("last evaluation: -9, -6" in image["alt"] for image in page.images)
    assert {p.name for p in tmp_path.iterdir()} == {"evaluation", "metrics.jsonl", "report.html"}


def test_learning_curve_is_drawn_over_environment_steps():
    records = [{"iteration": i, "returns": [-9.0, -8.0 + i], "standard_error": [1.0, 1.0]} for i in (1, 2)]
    (axes,) = figures.learning(records, {1: 1000.0, 2: 2000.0}).axes
    assert lines(axes)["episode 2"].tolist() == [-7, -6] and axes.get_xlabel() == "environment steps (thousands)"
    assert axes.lines[0].get_xdata().tolist() == [1, 2]
    (axes,) = figures.learning(records, {}).axes
    assert axes.get_xlabel() == "iteration"


def lines(axes) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_ydata(), float) for line in axes.lines}


def test_adaptation_shows_means_and_references(trial):
    tree = trial[2]
    (axes,) = figures.adaptation(tree).axes
    found = lines(axes)
    np.testing.assert_allclose(found["mean, 95 % interval"], array(tree, "trajectory", "return").mean(0))
    assert found["oracle: told the task"][0] == pytest.approx(array(tree, "trajectory", "reference_oracle").mean())
    assert found["standing still"][0] == pytest.approx(array(tree, "trajectory", "reference_still").mean())
    assert axes.get_xlabel() == "adaptation episode" and axes.get_ylabel() == "return (sum of rewards)"


def test_learned_and_exact_errors(trial):
    tree = trial[2]
    (axes,) = figures.learned_and_exact(tree).axes
    found = lines(axes)
    truth = np.stack([array(tree, "constant_data", f"goal_{x}_true") for x in "xy"], -1)
    for label, group in (("decoded from the belief", "decoded"), ("exact posterior", "exact")):
        expected = np.sqrt(((array(tree, group, "mean") - truth) ** 2).sum(-1).mean(1))
        np.testing.assert_allclose(found[label], expected, rtol=1e-6)
    assert found["exact posterior"][-1] < 0.8 * found["exact posterior"][0]
    assert "8 an episode" in axes.get_xlabel()


def test_per_dimension_and_active(gaussian):
    tree = gaussian[3]
    (axes,) = figures.per_dimension(tree, "contraction", "title", "unit").axes
    np.testing.assert_allclose(lines(axes)["z1"], array(tree, "fit_stats", "contraction")[:, :, 1].mean(1))
    (bars,) = figures.active(tree).axes
    heights = [bar.get_height() for bar in bars.patches]
    np.testing.assert_allclose(heights, array(tree, "fit_stats", "kl")[-1].mean(0), rtol=1e-5)
    assert bars.get_title(loc="left") == "2 of 2 dimensions active" or bars.get_title() == "2 of 2 dimensions active"


def test_paths_show_the_trial_and_the_beliefs(trial):
    family, _, tree = trial
    assert navigation.is_plane(tree)
    figure = navigation.paths(tree, exact_posterior(family))
    assert len(figure.axes) == 8  # two episodes of four tasks
    first = figure.axes[0]
    (path,) = [line for line in first.lines if line.get_label() == "path"]
    obs, after = array(tree, "trajectory", "obs")[0, :8], array(tree, "trajectory", "next_obs")[0, 7]
    np.testing.assert_allclose(np.stack(path.get_data(), -1), np.concatenate([obs, after[None]]))
    assert (first.images and first.get_title(loc="left").startswith("task 0, return")) or "task 0" in first.get_title()
    imagined = [c for c in first.collections if c.get_label() == "goals the agent thinks possible"]
    assert len(imagined[0].get_offsets()) == 40


def test_only_goals_in_the_plane_are_paths(gaussian):
    assert not navigation.is_plane(gaussian[3])


def test_paths_need_the_beliefs_at_the_starts_of_episodes(trial):
    kept = [0, 5, 16]
    tree = trial[2].copy()
    for group in ("posterior", "sample_stats", "fit_stats", "decoded", "exact"):
        tree[group] = tree[group].to_dataset().sel(context_step=kept)
    assert navigation.is_plane(trial[2]) and not navigation.is_plane(tree)


def test_density_integrates_to_one():
    where, height = density(np.random.default_rng(0).normal(2.0, 0.5, 500))
    assert np.trapezoid(height, where) == pytest.approx(1, abs=1e-3)
    assert np.trapezoid(height * where, where) == pytest.approx(2.0, abs=0.1)
    assert np.isfinite(density(np.zeros(10))[1]).all()


def test_principal_plane_turns_but_does_not_stretch():
    means = np.zeros((2, 30, 4))
    means[1, :, [1, 3]] = np.random.default_rng(0).normal(size=(2, 30)) * [[3], [1]]
    planes, shares = principal_plane(means)
    centred = means[1] - means[1].mean(0)
    np.testing.assert_allclose(np.linalg.norm(planes[1], axis=1), np.linalg.norm(centred, axis=1))
    assert shares.sum() == pytest.approx(1) and shares[0] > shares[1]
    assert principal_plane(means[:, :, :1])[0].shape == (2, 30, 2)


def test_style_does_not_leak(gaussian):
    before = dict(matplotlib.rcParams)
    assert rendered(lambda: figures.latent_map(gaussian[3])).startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before and before["axes.grid"] != STYLE["axes.grid"]


@pytest.mark.parametrize("broken, question", [("prior", "respond to data"), ("wide", "wider than the prior")])
def test_verdicts_fail_where_they_should(gaussian, broken, question):
    """A posterior that is the prior, and one that data widen; the exact one passes."""
    tree = gaussian[3]
    assert passed(verdicts(tree))
    stats = tree["fit_stats"].to_dataset().copy(deep=True)
    if broken == "prior":
        stats["kl"], stats["kl_total"] = 0 * stats["kl"], 0 * stats["kl_total"]
    else:
        stats["contraction"] = stats["contraction"] - 1
    worse = tree.copy()
    worse["fit_stats"] = stats
    (failure,) = [verdict for verdict in verdicts(worse) if verdict.outcome == "failed"]
    assert question in failure.question and not passed(verdicts(worse))


def test_verdicts_on_behaviour_and_decoding(trial):
    tree = trial[2].copy()
    worse = tree["trajectory"].to_dataset().copy(deep=True)
    worse["return"].values[:] = worse["return"].values[:, ::-1] * 0 - 3.0
    tree["trajectory"] = worse
    blind = tree["decoded"].to_dataset().copy(deep=True)
    blind["mean"].values[:] = 0.0
    tree["decoded"] = blind
    failed = {verdict.question for verdict in verdicts(tree) if verdict.outcome == "failed"}
    assert failed >= {"Does the agent get better as it adapts?", "Can the true task be read off the belief?"}


def test_undefined_information_is_a_note(gaussian, unpainted):
    tree = gaussian[3].copy()
    stats = tree["fit_stats"].to_dataset().copy(deep=True)
    stats["kl"], stats["kl_total"] = stats["kl"] * np.nan, stats["kl_total"] * np.nan
    tree["fit_stats"] = stats
    assert verdicts(tree)[0].outcome == "note"
    assert "dimensions active" not in report(tree)


def test_regret_against_agents_that_infer_exactly(trial):
    """The Bayes-optimal agent cannot be beaten: whoever does has been told something."""
    tree = trial[2].copy()
    group = tree["trajectory"].to_dataset()
    returns = group["return"].to_numpy()
    for better, outcome in ((5.0, "note"), (-5.0, "failed")):
        tree["trajectory"] = group.assign(reference_bayes_optimal=(("task", "episode"), returns + better / 2))
        (verdict,) = [v for v in verdicts(tree) if "Bayes-optimal" in v.question]
        assert verdict.outcome == outcome and f"regret of the whole trial {better:.3g} [" in verdict.found
    (against,) = [v for v in verdicts(trial[2]) if "posterior sampling" in v.question]
    regret = (array(trial[2], "trajectory", "reference_thompson") - group["return"].to_numpy()).sum(1).mean()
    assert against.outcome == "note" and f"{regret:.3g} [" in against.found


def test_reference_by_episode_is_a_line(trial):
    (axes,) = figures.adaptation(trial[2]).axes
    expected = array(trial[2], "trajectory", "reference_thompson").mean(0)
    np.testing.assert_allclose(lines(axes)["exact posterior sampling"], expected)
