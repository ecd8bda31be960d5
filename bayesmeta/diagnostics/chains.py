"""Markov chains of Pyro's as a tree of labelled arrays."""

from typing import Any

import numpy as np
import xarray as xr
from pyro.infer import MCMC


def chains_tree(mcmc: Any) -> xr.DataTree:
    """``posterior`` and ``sample_stats.diverging`` of a Pyro ``MCMC`` that has run, dimensions chain and draw first.

    Sites keep their names. The latent ``z`` of this library's programs, ``[B, 1, D]``, has dimensions task, latent_dim.
    Raises TypeError for anything but an ``MCMC``.
    """
    if not isinstance(mcmc, MCMC):
        raise TypeError(
            f"to_arviz: expected a results file's path, a results tree or a pyro.infer.MCMC, got "
            f"{type(mcmc).__name__}; make results of a belief with bayesmeta.diagnostics.results_from"
        )
    samples = {name: value.detach().cpu().numpy() for name, value in mcmc.get_samples(group_by_chain=True).items()}
    variables = {}
    for name, value in samples.items():
        rest = tuple(f"{name}_dim_{i}" for i in range(value.ndim - 2))
        if name == "z" and value.ndim == 5 and value.shape[3] == 1:
            value, rest = value.squeeze(3), ("task", "latent_dim")
        variables[name] = (("chain", "draw", *rest), value)
    chains, draws = next(iter(samples.values())).shape[:2]
    diverging = np.zeros((chains, draws), dtype=bool)
    for chain, steps in enumerate(mcmc.diagnostics().get("divergences", {}).values()):
        diverging[chain, [step for step in steps if step < draws]] = True
    groups = {
        "posterior": xr.Dataset(variables),
        "sample_stats": xr.Dataset({"diverging": (("chain", "draw"), diverging)}),
    }
    tree = {
        f"/{name}": group.assign_coords({dim: np.arange(size) for dim, size in group.sizes.items()})
        for name, group in groups.items()
    }
    made = xr.DataTree.from_dict(tree)
    made["posterior"].attrs = {"inference_library": "pyro"}
    return made
