"""What the latent of some results is: a vector with a name per dimension, a function's values, a single point."""

import xarray as xr

from bayesmeta.diagnostics.results import array, attribute


def is_point(tree: xr.DataTree) -> bool:
    """Whether the belief is one value for every task and context size."""
    return not array(tree, "fit_stats", "sd").any()


def is_functional(tree: xr.DataTree) -> bool:
    """Whether the latent of these results are a function's values."""
    return attribute(tree, "latent") == "function values"


def latent_names(tree: xr.DataTree) -> list[str]:
    """What the latent's dimensions are called: ``z0``, ``z1``, ..., or the values of the function that they are."""
    constant = tree["constant_data"].to_dataset()
    if "latent_name" in constant:
        return constant["latent_name"].to_numpy().tolist()
    return [f"z{d}" for d in range(tree["posterior"].sizes["latent_dim"])]
