"""Tasks that differ in their dynamics: log-scale multipliers of the elements of a MuJoCo model.

``value = model value * base^u`` element by element, with base 1.5 for masses, inertias and frictions and 1.3 for joint
damping. An element that is zero in the model (the world's mass, the undamped root joints) has no multiplier.
Source: the rand_param_envs code of Rothfuss et al. 2019, as used by Rakelly et al. 2019.
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bayesmeta.tasks.mujoco import load_model

BASES = {"body_mass": 1.5, "body_inertia": 1.5, "geom_friction": 1.5, "dof_damping": 1.3}
LIMIT, OOD_LIMIT = 3.0, 4.0  # |u| in training, and outside it


@lru_cache
def multiplier_names(xml: str) -> tuple[str, ...]:
    """The names of the ``M`` multipliers of a model in order, such as ``body_mass[2]`` and ``body_inertia[2,1]``."""
    model = load_model(xml)
    return tuple(
        f"{field}[{','.join(map(str, index))}]"
        for field in BASES
        for index in np.argwhere(getattr(model, field) != 0.0).tolist()
    )


def multiplied_fields(xml: str, u: np.ndarray) -> dict[str, np.ndarray]:
    """The model fields ``[B, ...]`` under the log-scale multipliers ``u [B, M]``."""
    model, fields, start = load_model(xml), {}, 0
    for field, base in BASES.items():
        value = getattr(model, field)
        varied = value != 0.0
        stop = start + int(varied.sum())
        fields[field] = np.repeat(value[None], len(u), 0)
        fields[field][:, varied] *= base ** u[:, start:stop]
        start = stop
    return fields


def sample_multipliers(n: int, size: int, ood: bool, generator: torch.Generator) -> Float[Tensor, "n M"]:
    """``u ~ U(-3, 3)`` per element, or, ``ood``, of random sign and size U(3, 4)."""
    u = 2.0 * torch.rand(n, size, generator=generator) - 1.0
    return u.sign() * (LIMIT + (OOD_LIMIT - LIMIT) * u.abs()) if ood else LIMIT * u
