"""An inference procedure as a Pyro guide."""

from collections.abc import Callable
from typing import Any

import pyro
import torch

from bayesmeta.models.distributions import OneRow
from bayesmeta.types import Belief, Context, Inference


def posterior_guide(belief: Belief, batch: int, kl_weight: float = 1.0) -> torch.Tensor:
    """The guide's statement for a belief already computed: site ``z`` with batch ``[B, 1]``, event ``[D]``."""
    with pyro.plate("task", batch, dim=-2), pyro.poutine.scale(scale=kl_weight):
        return pyro.sample("z", OneRow(belief.posterior))


def guide(inference: Inference, kl_weight: float = 1.0) -> Callable[..., torch.Tensor]:
    """The guide ``q(z | data)`` of a procedure, for the programs of :mod:`bayesmeta.models.task_model`.

    Gradients flow through the belief into the procedure's parameters. Extra arguments of the model are ignored.
    """

    def program(data: Context, **_: Any) -> torch.Tensor:
        belief = inference.update(inference.init(data.batch), data)
        return posterior_guide(belief, data.batch, kl_weight)

    return program
