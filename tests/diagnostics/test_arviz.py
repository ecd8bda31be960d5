"""ArviZ's own functions work on the file unchanged, whichever of its two lines is installed."""

from importlib.metadata import version

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib import pyplot
from pyro.infer import MCMC, SVI, Trace_ELBO
from pyro.infer import NUTS as PyroNUTS
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam

from bayesmeta.diagnostics import check
from bayesmeta.diagnostics.arviz import summary, to_arviz
from bayesmeta.diagnostics.results import array, at, save

NEW = int(version("arviz").split(".")[0]) >= 1
SOME = {"task": ["task_000", "task_001"], "latent_dim": [0, 1]}

pytestmark = [
    # ArviZ 0.23 on matplotlib 3.11, from inside its plots.
    pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping"),
    # It believes that more than a handful of independent draws deserve two chains.
    pytest.mark.filterwarnings("ignore:.*Shape validation failed"),
]


@pytest.fixture(scope="module")
def opened(trial, tmp_path_factory):
    """The file as ArviZ itself opens it."""
    import arviz

    file = save(trial[2], tmp_path_factory.mktemp("arviz") / "results.nc")
    data = arviz.from_netcdf(str(file))
    yield file, data
    pyplot.close("all")


def groups(data) -> set[str]:
    return set(data.children) if NEW else set(data.groups())


def test_arviz_opens_the_file(trial, opened):
    _, data = opened
    assert groups(data) == set(trial[2].children)
    np.testing.assert_array_equal(data["posterior"]["z"].values, array(trial[2], "posterior", "z"))


def test_summary(trial, opened):
    import arviz

    table = arviz.summary(opened[1], kind="stats", coords={"context_step": [0, 16], **SOME})
    assert len(table) == 8 and {"mean", "sd"} <= set(table.columns)
    expected = array(trial[2], "posterior", "z")[0, :, -1, 1, 1].mean()
    (row,) = [name for name in table.index if name.replace(" ", "") == "z[16,task_001,1]"]
    assert float(table.loc[row, "mean"]) == pytest.approx(expected, abs=6e-3 * max(1, abs(expected)))


def test_plots(trial, opened):
    import arviz

    _, data = opened
    last = to_arviz(at(trial[2], 16))
    steps = {"context_step": [0, 16], **SOME}
    if NEW:
        arviz.plot_forest(data, coords=steps)
        arviz.plot_dist(data, coords={"context_step": 16, **SOME})
        arviz.plot_pair(data, coords={"context_step": 16, "task": ["task_000"]})
        arviz.plot_prior_posterior(last, coords=SOME)
        arviz.plot_ecdf_pit(last, coords=SOME, group="posterior")
    else:
        arviz.plot_forest(data, coords=steps)
        arviz.plot_posterior(data, coords={"context_step": [16], **SOME})
        arviz.plot_pair(data, coords={"context_step": [16], "task": ["task_000"]})
        arviz.plot_dist_comparison(last, coords=SOME)
        arviz.plot_density([last], var_names=["z"])
    assert pyplot.get_fignums()


def test_same_container_from_file_and_from_memory(trial, opened):
    file, _ = opened
    for source in (file, str(file), trial[2]):
        data = to_arviz(source)
        assert type(data).__name__ == ("DataTree" if NEW else "InferenceData")
        np.testing.assert_array_equal(data["prior"]["z"].values, array(trial[2], "prior", "z"))
        assert data.attrs["bayesmeta_schema_version"] == 1


def test_a_pyro_mcmc_of_ones_own(gaussian):
    family, _, context, _ = gaussian
    few = type(context)(context.x[:3], context.y[:3], context.mask[:3])
    mcmc = MCMC(PyroNUTS(family.model), num_samples=30, warmup_steps=20, disable_progbar=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mcmc.run(few)
    data = to_arviz(mcmc)
    assert data["posterior"]["z"].dims == ("chain", "draw", "task", "latent_dim")
    np.testing.assert_array_equal(data["posterior"]["z"].values[0], mcmc.get_samples()["z"].squeeze(-2))
    assert data["sample_stats"]["diverging"].shape == (1, 30)
    import arviz

    assert "r_hat" in arviz.summary(data).columns


def test_a_pyro_svi_of_ones_own(gaussian):
    """Its guide's draws, by name: the moments of an AutoNormal's, and no R-hat in the summary."""
    _, _, context, _ = gaussian

    def line(data):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("datum", data.y.numel()):
            mean = (data.x.reshape(-1, 2) @ weight.unsqueeze(-1)).reshape(-1)
            pyro.sample("y", dist.Normal(mean, 0.5), obs=data.y.reshape(-1))

    few = type(context)(context.x[:1], context.y[:1], context.mask[:1])
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        torch.manual_seed(0)
        guide = AutoNormal(line)
        svi = SVI(line, guide, Adam({"lr": 0.02}), Trace_ELBO())
        for _ in range(20):
            svi.step(few)
        before = torch.random.get_rng_state()
        data = to_arviz(svi, few, draws=4000)
        table = summary(svi, few, draws=4000)
        assert torch.equal(before, torch.random.get_rng_state())
        mean, sd = (value.detach().numpy() for value in guide._get_loc_and_scale("weight"))
    assert data["posterior"]["weight"].dims == ("chain", "draw", "weight_dim_0")
    drawn = data["posterior"]["weight"].values[0]
    assert drawn.shape == (4000, 2) and (np.abs(drawn.mean(0) - mean) < 4 * sd / np.sqrt(4000)).all()
    np.testing.assert_allclose(drawn.std(0), sd, rtol=0.1)
    assert "r_hat" not in table.columns and data.attrs["inference_kind"] == "vi"


def test_summary_shows_r_hat_for_chains_only(trial, opened):
    coordinates = {"context_step": [16], **SOME}
    table = summary(opened[0], coords=coordinates)
    assert len(table) == 4 and not {"r_hat", "ess_bulk"} & set(table.columns)
    chains = trial[2].copy()
    chains.attrs = {**chains.attrs, "inference_kind": "mcmc"}
    assert "r_hat" in summary(chains, coords=coordinates).columns


def test_calibration_plots_work_on_the_file_of_a_check(gaussian, tmp_path):
    """ArviZ's own PIT plot finds the group and its values in [0, 1]; on 0.23, which has none, the arrays are there."""
    import arviz

    family = gaussian[0]
    found = check(family.exact, family, sizes=(1, 5), tasks=60, draws=49, queries=3)
    data = arviz.from_netcdf(str(found.save(tmp_path)[0]))
    values = data["prior_sbc"]["z"].values
    assert values.shape == (1, 60, 3, 2) and 0 <= values.min() <= values.max() <= 1
    if NEW:
        arviz.plot_ecdf_pit(to_arviz(at(found.tree, 5)), group="prior_sbc")
        arviz.plot_ecdf_pit(to_arviz(at(found.tree, 5)), group="prior_sbc", coverage=True)
    assert len(arviz.summary(data, kind="stats", coords={"context_step": [5], **SOME})) == 4


def test_anything_else_is_refused():
    with pytest.raises(TypeError, match=r"a pyro\.infer\.MCMC or a pyro\.infer\.SVI, got dict"):
        to_arviz({})
