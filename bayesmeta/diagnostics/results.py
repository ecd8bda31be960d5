"""The results file: what one evaluation found, as groups of labelled arrays in one netCDF file that ArviZ opens.

=================  ==================================================  ========================================
group              variables                                           dimensions
=================  ==================================================  ========================================
``posterior``      ``z``: draws after each number of data              chain draw context_step task latent_dim
``prior``          ``z``                                               chain draw task latent_dim
``sample_stats``   ``log_q``; ``lp``, the joint log density, if known  chain draw context_step task
``fit_stats``      ``mean sd contraction kl``                          context_step task latent_dim
..                 ``z_score``                                         context_step task latent_dim
..                 ``kl_total n_context k_hat information``            context_step task
``constant_data``  ``<parameter>_true``                                task
``prior_sbc``      ``log_likelihood log_q tarp``, other quantities     chain draw context_step
..                 ``z``, ``decoded``: ranks of the truth, PIT         .. and latent_dim, param
``calibration``    ``p_value log_gamma``                               context_step quantity
..                 ``coverage``                                        context_step level
``reference``      ``z``: draws of the reference, for a few tasks      as the posterior's
``distance``       ``kl_reference sliced_wasserstein``                 context_step task
..                 ``mean_error sd_ratio``                             context_step task latent_dim
``predictive``     ``value``; ``by_task``; ``pit`` of unseen data      score; score task; task query target
..                 ``confidence accuracy count`` of classes            bin
``ood``            ``auroc low high`` of out-of-distribution tasks     scored_by
``decoded exact``  ``mean``, ``sd`` of the task parameters             context_step task param
``trajectory``     ``return latent``                                   task episode (read_dim)
..                 ``reward real obs next_obs action``                 task t (obs_dim or action_dim)
..                 ``reference_<name>``: returns to compare with       task (episode)
``exploration``    ``exact_nats nats kl code_nats bonus real action``  context_step task
..                 ``state``; ``exact_probability probability``        context_step task state_dim; problem_row
..                 ``confidence accuracy count``; ``ece exact_ece``    context_step bin; context_step
..                 ``problem``: the row of the true one                task
``unseen``         ``return``; ``exact_nats``, ``reference_<name>``    unseen_task episode; unseen_task
``observed_data``  ``y``; its inputs are in ``constant_data``          obs y_dim
=================  ==================================================  ========================================

KL divergences are in nats. ``context_step`` counts rows of the context, 0 being the prior, and ``n_context`` those of
them that are real. ``decoded`` are the parameters read off the belief by regression, ``exact`` the moments of the true
posterior where the family knows it. Control families have a trajectory, supervised ones observed data. In ``prior_sbc``
a draw is a data set (the names are ArviZ's); it and ``calibration`` may leave out context sizes, ``reference`` tasks.
In ``exploration``, of a world of finitely many problems, ``exact_`` are of the posterior over them, the others of what
the belief says of them; ``bonus`` is paid for the step that led there (:mod:`bayesmeta.diagnostics.worlds`). ``unseen``
are other tasks, of problems that were not trained on.
Independent draws are one chain. Further groups and variables may be added; those above keep their dimensions.
Attributes are strings and numbers; anything else is JSON in an attribute whose name ends in ``_json``.

This module reads and writes the file with xarray and netCDF4 alone: no torch, no ArviZ.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr
from xarray.backends import NetCDF4DataStore

SCHEMA_VERSION = 1

_PER_LATENT = ("context_step", "task", "latent_dim")
_PER_DRAW = ("chain", "draw", "context_step", "task")
_PER_SET = ("chain", "draw", "context_step")
_ALWAYS = ("mean", "sd", "contraction", "kl", "kl_total", "n_context")
_PER_PARAM = ("context_step", "task", "param")
DIMS: dict[str, dict[str, tuple[str, ...]]] = {
    "posterior": {"z": (*_PER_DRAW, "latent_dim")},
    "prior": {"z": ("chain", "draw", "task", "latent_dim")},
    "sample_stats": {"log_q": _PER_DRAW, "lp": _PER_DRAW},
    "fit_stats": {
        **dict.fromkeys(_ALWAYS[:4], _PER_LATENT),
        **dict.fromkeys((*_ALWAYS[4:], "k_hat", "log_q_true", "information"), ("context_step", "task")),
        "z_score": _PER_LATENT,
    },
    "reference": {"z": (*_PER_DRAW, "latent_dim")},
    "distance": {
        **dict.fromkeys(("kl_reference", "sliced_wasserstein"), ("context_step", "task")),
        **dict.fromkeys(("mean_error", "sd_ratio"), _PER_LATENT),
    },
    "prior_sbc": {
        "z": (*_PER_SET, "latent_dim"),
        "decoded": (*_PER_SET, "param"),
        **dict.fromkeys(("log_likelihood", "log_q", "tarp"), _PER_SET),
    },
    "calibration": {
        **dict.fromkeys(("p_value", "log_gamma"), ("context_step", "quantity")),
        "coverage": ("context_step", "level"),
    },
    "constant_data": {"x": ("obs", "x_dim"), "task_of_obs": ("obs",), "step_of_obs": ("obs",)},
    "predictive": {
        **{"value": ("score",), "by_task": ("score", "task"), "pit": ("task", "query", "target")},
        **dict.fromkeys(("confidence", "accuracy", "count"), ("bin",)),
    },
    "ood": dict.fromkeys(("auroc", "low", "high"), ("scored_by",)),
    "decoded": {"mean": _PER_PARAM},
    "exact": {"mean": _PER_PARAM, "sd": _PER_PARAM},
    "trajectory": {
        "return": ("task", "episode"),
        "latent": ("task", "episode", "read_dim"),
        "reward": ("task", "t"),
        "real": ("task", "t"),
        "obs": ("task", "t", "obs_dim"),
        "next_obs": ("task", "t", "obs_dim"),
        "action": ("task", "t", "action_dim"),
        "episode_of_t": ("t",),
    },
    "exploration": {
        **dict.fromkeys(("exact_nats", "nats", "kl", "code_nats", "bonus", "real", "action"), ("context_step", "task")),
        **dict.fromkeys(("exact_probability", "probability"), ("context_step", "task", "problem_row")),
        **dict.fromkeys(("confidence", "accuracy", "count"), ("context_step", "bin")),
        **dict.fromkeys(("ece", "exact_ece"), ("context_step",)),
        "state": ("context_step", "task", "state_dim"),
        "problem": ("task",),
    },
    "unseen": {
        "return": ("unseen_task", "episode"),
        "exact_nats": ("unseen_task",),
        "problem": ("unseen_task", "param"),
    },
    "observed_data": {"y": ("obs", "y_dim")},
}
_PARTIAL = ("reference", "prior_sbc", "calibration")  # may leave out tasks or context sizes
REQUIRED = {"posterior": ("z",), "prior": ("z",), "fit_stats": _ALWAYS, "constant_data": ()}


class ResultsError(ValueError):
    """A results file or tree that does not follow the schema; the message names the file, the place and the remedy."""


def tree_of(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]) -> xr.DataTree:
    """Groups and root attributes as a tree with this schema's version; attributes are encoded for netCDF."""
    tree = xr.DataTree.from_dict({f"/{name}": group for name, group in groups.items()})
    tree.attrs = {"bayesmeta_schema_version": SCHEMA_VERSION, **encoded(attrs)}
    return tree


def encoded(attrs: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Attributes as netCDF takes them. None, truth values, lists and mappings become JSON under ``<name>_json``."""
    plain: dict[str, str | int | float] = {}
    for name, value in attrs.items():
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            plain[name] = value
        else:
            plain[name if name.endswith("_json") else f"{name}_json"] = json.dumps(value, default=str)
    return plain


def attribute(tree: xr.DataTree, name: str, default: Any = None) -> Any:
    """A root attribute as it was before it was encoded."""
    if f"{name}_json" in tree.attrs:
        return json.loads(tree.attrs[f"{name}_json"])
    return tree.attrs.get(name, default)


def array(tree: xr.DataTree, group: str, name: str) -> np.ndarray:
    """A variable or a coordinate of a group as an array."""
    return tree[group].to_dataset()[name].to_numpy()


def parameters(tree: xr.DataTree) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and true values ``[B, M]`` of the task parameters."""
    truth = tree["constant_data"].dataset
    names = tuple(str(name).removesuffix("_true") for name in truth.data_vars if str(name).endswith("_true"))
    columns = [truth[f"{name}_true"].values for name in names]
    return names, np.stack(columns, -1) if columns else np.zeros((truth.sizes.get("task", 0), 0))


def episode_ends(tree: xr.DataTree) -> list[int]:
    """Context sizes at which an episode ended; none where there are no episodes."""
    if "trajectory" not in tree.children:
        return []
    episode = array(tree, "trajectory", "episode_of_t")
    return [*(np.flatnonzero(np.diff(episode)) + 1).tolist(), len(episode)]


def at(tree: xr.DataTree, context_step: int) -> xr.DataTree:
    """The results after ``context_step`` data: every group without its ``context_step`` dimension.

    Raises KeyError, naming the sizes there are, for one that was not recorded.
    """
    steps = array(tree, "posterior", "context_step")
    if context_step not in steps:
        raise KeyError(f"context_step = {context_step}: not recorded; choose one of {', '.join(map(str, steps))}")
    groups = {name: node.to_dataset() for name, node in tree.children.items()}
    chosen = {
        name: group.sel(context_step=context_step, drop=True) if "context_step" in group.dims else group
        for name, group in groups.items()
        if "context_step" not in group.dims or context_step in group["context_step"]
    }
    cut = xr.DataTree.from_dict({f"/{name}": group for name, group in chosen.items()})
    cut.attrs = dict(tree.attrs)
    return cut


def validate(tree: xr.DataTree, source: str = "results") -> None:
    """Raise ResultsError unless the tree follows the schema."""
    version = tree.attrs.get("bayesmeta_schema_version")
    if version is None:
        raise ResultsError(f"{source}: no attribute bayesmeta_schema_version: this is not a bayesmeta results file")
    if int(version) != SCHEMA_VERSION:
        raise ResultsError(
            f"{source}: schema version {version}, but this bayesmeta reads version {SCHEMA_VERSION}; write it again "
            f"with `bayesmeta diagnose`, or read it with bayesmeta {tree.attrs.get('bayesmeta_version')}"
        )
    for group, names in REQUIRED.items():
        missing = [name for name in names if name not in tree[group].data_vars] if group in tree.children else None
        if missing is None or missing:
            raise ResultsError(
                f"{source}: expected group {group!r} with {', '.join(names) or 'the true parameters'}, "
                f"got {'no such group' if missing is None else 'none of ' + ', '.join(missing)}"
            )
    for group, node in tree.children.items():
        _check_group(f"{source}: {group}", node.to_dataset(), DIMS.get(group, {}))
    _check_coordinates(tree, source)


def _check_group(where: str, group: xr.Dataset, known: Mapping[str, tuple[str, ...]]) -> None:
    for name, variable in group.data_vars.items():
        expected = known.get(str(name))
        if expected is not None and variable.dims != expected:
            raise ResultsError(f"{where}.{name}: expected dimensions {expected}, got {variable.dims}")
    for name in ("z", "mean", "sd"):
        if name in known and name in group and not np.isfinite(group[name].values).all():
            raise ResultsError(f"{where}.{name} holds values that are not finite: the belief broke down on some task")


def _check_coordinates(tree: xr.DataTree, source: str) -> None:
    steps = array(tree, "posterior", "context_step")
    if "context_step" not in tree["posterior"].coords or steps[0] != 0 or not (np.diff(steps) > 0).all():
        raise ResultsError(
            f"{source}: expected context_step to start at 0 (the prior) and increase, got {steps.tolist()}"
        )
    for coordinate in ("task", "context_step", "latent_dim"):
        reference = array(tree, "posterior", coordinate)
        for group, node in tree.children.items():
            labels = array(tree, group, coordinate) if coordinate in node.dims else reference
            some = group in _PARTIAL and set(labels.tolist()) <= set(reference.tolist())
            if not some and not np.array_equal(labels, reference):
                raise ResultsError(f"{source}: {group} has other {coordinate} labels than the posterior group")


def save(tree: xr.DataTree, path: Path | str) -> Path:
    """Check the tree and write it, compressed, so that ``path`` is always a whole file: the old one or the new one."""
    validate(tree)
    path = Path(path).absolute()
    temporary = path.with_name(f".tmp-{path.name}")
    encoding = {
        f"/{name}": {v: _encoding(x) for v, x in node.data_vars.items()} for name, node in tree.children.items()
    }
    try:
        tree.to_netcdf(temporary, engine="netcdf4", encoding=encoding)
        for part in (temporary, path.parent):
            descriptor = os.open(part, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def _encoding(variable: xr.DataArray) -> dict[str, Any]:
    return {"zlib": True, "complevel": 4} if variable.dtype.kind in "fiub" and variable.size > 64 else {}


def load(path: Path | str) -> xr.DataTree:
    """Read a results file into memory and check it. Raises ResultsError or FileNotFoundError.

    The bytes are read first and parsed in memory: xarray shares one handle among all who open a file, and closing it
    here would crash the process of someone who still has the file open in ArviZ.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `bayesmeta diagnose run=DIR` writes DIR/diagnostics/results.nc")
    try:
        with netCDF4.Dataset(path.name, memory=path.read_bytes()) as file:
            groups = {name: _read_group(group) for name, group in file.groups.items()}
            attrs = {name: file.getncattr(name) for name in file.ncattrs()}
    except (OSError, RuntimeError, ValueError) as error:
        raise ResultsError(f"{path}: not a netCDF file, or one that was cut or damaged ({error})") from error
    tree = xr.DataTree.from_dict({f"/{name}": group for name, group in groups.items()})
    tree.attrs = {name: value.item() if isinstance(value, np.generic) else value for name, value in attrs.items()}
    validate(tree, str(path))
    return tree


def _read_group(group: netCDF4.Group) -> xr.Dataset:
    dataset = xr.open_dataset(NetCDF4DataStore(group)).load()
    for variable in dataset.variables.values():
        variable.encoding = {}  # how it was stored is no property of what it is
    return dataset
