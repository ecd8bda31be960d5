"""The file: what goes in comes out, what does not belong is refused, and nothing is ever half written."""

import netCDF4
import numpy as np
import pytest
import xarray as xr

from bayesmeta.diagnostics import results
from bayesmeta.diagnostics.results import ResultsError, array, at, attribute, encoded, load, parameters, save, tree_of


@pytest.fixture
def file(trial, tmp_path):
    return save(trial[2], tmp_path / "results.nc")


def test_round_trip(trial, file):
    read = load(file)
    assert read.identical(trial[2])
    assert read.attrs == trial[2].attrs
    assert list(file.parent.iterdir()) == [file]


def test_attributes_of_any_kind(tmp_path, trial):
    tree = trial[2].copy()
    odd = {"none": None, "flag": True, "tree": {"a": [1, None]}, "names": ["x", "y"], "text": "µ", "number": 2.5}
    tree.attrs = {**tree.attrs, **encoded(odd)}
    read = load(save(tree, tmp_path / "r.nc"))
    assert {name: attribute(read, name) for name in odd} == odd
    assert attribute(read, "absent", 7) == 7


def test_file_is_compressed(file):
    with netCDF4.Dataset(file) as stored:
        assert all(stored[name].filters()["zlib"] for name in ("posterior/z", "trajectory/reward", "exact/mean"))


def test_parameters(gaussian):
    names, truth = parameters(gaussian[3])
    assert names == ("weight_0", "weight_1")
    np.testing.assert_array_equal(truth, gaussian[1].numpy())


def test_at_drops_the_context(gaussian):
    tree = gaussian[3]
    cut = at(tree, 5)
    assert "context_step" not in cut["posterior"].dims and cut["prior"].to_dataset().equals(tree["prior"].to_dataset())
    c = tree["posterior"]["context_step"].values.tolist().index(5)
    np.testing.assert_array_equal(array(cut, "posterior", "z"), array(tree, "posterior", "z")[:, :, c])
    with pytest.raises(KeyError, match=r"context_step = 3: not recorded; choose one of 0, 1, 2, 5, 10"):
        at(tree, 3)


def test_users_own_groups_and_variables_are_kept(trial, tmp_path):
    tree = trial[2].copy()
    tree["mine"] = xr.Dataset({"anything": ("x", np.arange(3))})
    tree["fit_stats"] = tree["fit_stats"].to_dataset().assign(elbo=("step", np.zeros(4)))
    assert load(save(tree, tmp_path / "r.nc"))["mine"]["anything"].sum() == 3


def changed(tree: xr.DataTree, group: str, change) -> xr.DataTree:
    groups = {name: node.to_dataset() for name, node in tree.children.items()}
    groups[group] = change(groups[group])
    return tree_of({k: v for k, v in groups.items() if v is not None}, {})


@pytest.mark.parametrize(
    "group, change, message",
    [
        ("posterior", lambda g: None, r"expected group 'posterior' with z, got no such group"),
        ("constant_data", lambda g: None, r"expected group 'constant_data' with the true parameters"),
        ("fit_stats", lambda g: g.drop_vars("kl_total"), r"'fit_stats' with .*kl_total.*, got none of kl_total"),
        ("prior", lambda g: g.rename(latent_dim="d"), r"prior\.z: expected dimensions .*'latent_dim'.*, got .*'d'"),
        (
            "posterior",
            lambda g: g.transpose(..., "task", "latent_dim").transpose("draw", ...),
            r"posterior\.z: expected",
        ),
        ("posterior", lambda g: g.assign(z=g["z"].where(g["z"] < 0)), r"posterior\.z holds values that are not finite"),
        ("posterior", lambda g: g.isel(context_step=slice(1, None)), r"context_step to start at 0 .* got \[1, 2"),
        ("posterior", lambda g: g.isel(context_step=[0, 2, 1, 3]), r"context_step to start at 0 .* and increase"),
        ("fit_stats", lambda g: g.isel(context_step=[0, 1, 3]), r"fit_stats has other context_step labels"),
        ("prior", lambda g: g.assign_coords(task=[f"t{i}" for i in range(10)]), r"prior has other task labels"),
    ],
)
def test_what_does_not_follow_the_schema_is_refused(trial, tmp_path, group, change, message):
    with pytest.raises(ResultsError, match=message):
        save(changed(trial[2], group, change), tmp_path / "r.nc")
    assert not list(tmp_path.iterdir())


def test_another_version_is_refused(trial, tmp_path):
    tree = trial[2].copy()
    tree.attrs = {**tree.attrs, "bayesmeta_schema_version": 2, "bayesmeta_version": "9.9"}
    with pytest.raises(ResultsError, match=r"schema version 2, but this bayesmeta reads version 1; .* bayesmeta 9\.9"):
        results.validate(tree)


def test_a_failed_write_leaves_the_old_file(trial, file):
    before = file.read_bytes()
    broken = trial[2].copy()
    broken.attrs = {**broken.attrs, "broken": {"a": "dict is no netCDF attribute"}}
    with pytest.raises(TypeError):
        save(broken, file)
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]


def test_nothing_is_under_the_final_name_before_it_is_whole(trial, tmp_path, monkeypatch):
    """What is renamed into place can already be read and is on the disk."""
    seen = {}

    def replace(source, target):
        seen["before"] = target.exists(), load(source).identical(trial[2])
        raise KeyboardInterrupt

    monkeypatch.setattr(results.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        save(trial[2], tmp_path / "results.nc")
    assert seen == {"before": (False, True)} and not list(tmp_path.iterdir())


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.nc: no such file; `bayesmeta diagnose run=DIR` writes"):
        load("nowhere.nc")


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty"])
def test_damaged_file(file, damage):
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(
        {
            "cut": whole[:middle],
            "flipped": whole[:middle] + bytes(255 - b for b in whole[middle : middle + 2000]) + whole[middle + 2000 :],
            "text": b"no netCDF at all",
            "empty": b"",
        }[damage]
    )
    with pytest.raises(ResultsError, match=r"results\.nc"):
        load(file)


def test_somebody_elses_netcdf(tmp_path):
    with netCDF4.Dataset(tmp_path / "x.nc", "w") as other:
        other.createDimension("time", 3)
    with pytest.raises(ResultsError, match=r"no attribute bayesmeta_schema_version: this is not a bayesmeta results"):
        load(tmp_path / "x.nc")


def test_a_file_that_others_hold_open_can_be_read_and_replaced(trial, file):
    """xarray gives all who open a file one handle: closing it under someone would end the process."""
    held = xr.open_datatree(file, engine="netcdf4")
    for _ in range(3):
        load(file)
    save(trial[2], file)
    assert load(file).identical(trial[2])
    assert np.isfinite(held["posterior"]["z"].values).all()
    held.close()
