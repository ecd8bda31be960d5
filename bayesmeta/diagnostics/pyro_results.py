"""Results of Pyro's own inference as a tree of labelled arrays: chains of ``MCMC``, draws of an ``SVI`` guide."""

from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro.infer import MCMC, SVI, Predictive
from torch import Tensor

from bayesmeta.models.randomness import torch_seeded


def pyro_tree(source: Any, args: tuple[Any, ...] = (), *, draws: int = 1000, seed: int = 0) -> xr.DataTree:
    """``posterior`` of an ``MCMC`` that has run, or of the guide of an ``SVI``; dimensions chain and draw first.

    Of chains also ``sample_stats.diverging``. A guide is run on ``args``, the arguments that the SVI was stepped with:
    ``draws`` independent draws are one chain, seeded with ``seed``; the global random state is left as it was. Sites
    keep their names. The latent ``z`` of this library's programs, ``[B, 1, D]``, has dimensions task, latent_dim. The
    attribute ``inference_kind`` says which of the two it was. Raises TypeError for anything else.
    """
    if isinstance(source, MCMC):
        kind, samples = "mcmc", source.get_samples(group_by_chain=True)
    elif isinstance(source, SVI):
        with torch_seeded(seed), torch.no_grad():
            drawn = Predictive(source.guide, num_samples=draws)(*args)
        kind, samples = "vi", {name: value.unsqueeze(0) for name, value in drawn.items()}
    else:
        raise TypeError(
            f"to_arviz: expected a results file's path, a results tree, a pyro.infer.MCMC or a pyro.infer.SVI, got "
            f"{type(source).__name__}; make results of a belief with bayesmeta.diagnostics.results_from"
        )
    posterior = xr.Dataset({name: _labelled(name, value) for name, value in samples.items()})
    groups = {"posterior": posterior}
    if isinstance(source, MCMC):
        diverging = np.zeros((posterior.sizes["chain"], posterior.sizes["draw"]), dtype=bool)
        for chain, steps in enumerate(source.diagnostics().get("divergences", {}).values()):
            diverging[chain, [step for step in steps if step < diverging.shape[1]]] = True
        groups["sample_stats"] = xr.Dataset({"diverging": (("chain", "draw"), diverging)})
    tree = {
        f"/{name}": group.assign_coords({dim: np.arange(size) for dim, size in group.sizes.items()})
        for name, group in groups.items()
    }
    made = xr.DataTree.from_dict(tree)
    made.attrs = {"inference_kind": kind}
    made["posterior"].attrs = {"inference_library": "pyro"}
    return made


def _labelled(name: str, value: Tensor) -> tuple[tuple[str, ...], np.ndarray]:
    array = value.detach().cpu().numpy()
    rest = tuple(f"{name}_dim_{i}" for i in range(array.ndim - 2))
    if name == "z" and array.ndim == 5 and array.shape[3] == 1:
        array, rest = array.squeeze(3), ("task", "latent_dim")
    return ("chain", "draw", *rest), array
