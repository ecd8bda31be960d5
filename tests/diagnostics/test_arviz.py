"""ArviZ's own functions work on the file unchanged, whichever of its two lines is installed."""

from importlib.metadata import version

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from pyro.infer import MCMC
from pyro.infer import NUTS as PyroNUTS

from bayesmeta.diagnostics.arviz import to_arviz
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


def test_anything_else_is_refused():
    with pytest.raises(TypeError, match=r"a results file's path, a results tree or a pyro\.infer\.MCMC, got dict"):
        to_arviz({})
