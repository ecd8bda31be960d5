"""The one module that knows ArviZ: results as the installed version's own container.

ArviZ is two lines, ``InferenceData`` in 0.x (Python 3.11) and xarray's ``DataTree`` in 1.x (3.12 and later). Both read
the files of :mod:`bayesmeta.diagnostics.results` directly, with ``arviz.from_netcdf``; ``to_arviz`` also takes what has
not been written, and chains of Pyro's. R-hat and ESS mean something for chains only: for the independent draws of an
amortised belief call ``arviz.summary(..., kind="stats")``.
"""

from pathlib import Path
from typing import Any

import xarray as xr

from bayesmeta.diagnostics.results import load


def to_arviz(source: Any) -> Any:
    """Results as ArviZ's container: of a file, a results tree, or a Pyro ``MCMC`` that has run.

    Raises TypeError for anything else, and what :func:`bayesmeta.diagnostics.results.load` raises for a file.
    """
    if isinstance(source, str | Path):
        tree = load(source)
    elif isinstance(source, xr.DataTree):
        tree = source
    else:
        tree = _of_pyro(source)
    import arviz

    if int(arviz.__version__.split(".")[0]) >= 1:
        return tree.copy()
    groups: dict[str, Any] = {name: node.to_dataset() for name, node in tree.children.items()}
    return arviz.InferenceData(attrs=tree.attrs, **groups)


def _of_pyro(source: Any) -> xr.DataTree:
    from bayesmeta.diagnostics.chains import chains_tree

    return chains_tree(source)
