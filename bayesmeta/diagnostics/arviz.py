"""The one module that knows ArviZ: results as the installed version's own container.

ArviZ is two lines, ``InferenceData`` in 0.x (Python 3.11) and xarray's ``DataTree`` in 1.x (3.12 and later). Both read
the files of :mod:`bayesmeta.diagnostics.results` directly, with ``arviz.from_netcdf``; ``to_arviz`` also takes what has
not been written, and results of Pyro's own.
"""

from pathlib import Path
from typing import Any

import xarray as xr

from bayesmeta.diagnostics.results import load


def to_arviz(source: Any, *args: Any, draws: int = 1000, seed: int = 0) -> Any:
    """Results as ArviZ's container: of a file, a results tree, a Pyro ``MCMC`` that has run, or a Pyro ``SVI``.

    Of an SVI ``draws`` are taken from its guide, which is run on ``args``, the arguments the SVI was stepped with.
    Raises TypeError for anything else, and what :func:`bayesmeta.diagnostics.results.load` raises for a file.
    """
    tree = _tree(source, args, draws, seed)
    import arviz

    if int(arviz.__version__.split(".")[0]) >= 1:
        return tree.copy()
    groups: dict[str, Any] = {name: node.to_dataset() for name, node in tree.children.items()}
    return arviz.InferenceData(attrs=tree.attrs, **groups)


def summary(source: Any, *args: Any, draws: int = 1000, seed: int = 0, **options: Any) -> Any:
    """``arviz.summary`` of whatever :func:`to_arviz` takes, as a table, with R-hat and ESS for Markov chains only.

    Independent draws of an amortised or variational belief have neither: what ArviZ would print for them is noise.
    ``options`` are ArviZ's, ``coords`` above all.
    """
    data = to_arviz(source, *args, draws=draws, seed=seed)
    import arviz

    chains = data.attrs.get("inference_kind") == "mcmc"
    return arviz.summary(data, **{"kind": "all" if chains else "stats", **options})


def _tree(source: Any, args: tuple[Any, ...], draws: int, seed: int) -> xr.DataTree:
    if isinstance(source, str | Path):
        return load(source)
    if isinstance(source, xr.DataTree):
        return source
    from bayesmeta.diagnostics.pyro_results import pyro_tree

    return pyro_tree(source, args, draws=draws, seed=seed)
