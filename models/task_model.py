"""Hierarchical task models as Pyro programs.

A generative model states two conditional distributions, ``prior`` and ``likelihood``; its Pyro program and its density
are derived from them once for all. A model without a likelihood (control as inference) states a prior and a log factor.

Every program has the same shape, so that any guide fits any model: plate ``task`` at dim -2, plate ``datum`` at dim -1,
latent site ``z`` with batch ``[B, 1]`` and event ``[D]``.
"""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.models.distributions import OneRow
from bayesmeta.types import Context

# Without it Pyro copies a program's learned parameters into its global store, where two models of one class collide.
_own_parameters = pyro.settings.context(module_local_params=True)


class TaskModel(PyroModule):
    r"""``p(z) \prod_n p(y_n | x_n, z)`` for each task: the user writes ``prior`` and ``likelihood``.

    Calling the model runs its Pyro program (``plate(task) / sample(z) / plate(datum) / mask / sample(y)``), on which
    Pyro's handlers, ELBOs, NUTS and ``Predictive`` work unchanged.
    """

    def prior(self, batch: int) -> Distribution:
        """Prior of the task latent: batch ``[B]``, event ``[D]``."""
        raise NotImplementedError(f"{type(self).__name__} needs `prior(batch)`, a distribution with event [D]")

    def likelihood(self, z: Float[Tensor, "*S B n D"], data: Context) -> Distribution:
        """Distribution of each datum: batch ``[*S, B, N]``, event ``[Y]``.

        ``z`` comes as ``[*S, B, 1, D]`` (``*S`` are posterior draws, or absent), so that it broadcasts against
        ``data.x [B, N, X]`` without any reshaping by the user.
        """
        raise NotImplementedError(f"{type(self).__name__} needs `likelihood(z, data)`, a distribution with event [Y]")

    @_own_parameters
    def forward(self, data: Context, *, observe: bool = True) -> Float[Tensor, "*S B 1 D"]:
        """The Pyro program. With ``observe=False`` the targets are drawn instead (site ``y``)."""
        with pyro.plate("task", data.batch, dim=-2):
            z = pyro.sample("z", OneRow(self.prior(data.batch)))
            if data.size:  # Pyro has no empty plates
                real: Any = data.mask
                with pyro.plate("datum", data.size, dim=-1), pyro.poutine.mask(mask=real):
                    law: Any = self.likelihood(z, data)
                    pyro.sample("y", law, obs=data.y if observe else None)
        return z

    def log_prior(self, z: Float[Tensor, "*S B D"]) -> Float[Tensor, "*S B"]:
        """``log p(z)`` per task."""
        return self.prior(z.shape[-2]).log_prob(z)

    def log_likelihood(self, z: Float[Tensor, "*S B D"], data: Context) -> Float[Tensor, "*S B"]:
        r"""``\sum_n log p(y_n | x_n, z)`` per task over the real data; exactly 0 where there is none."""
        if not data.size:  # torch cannot evaluate an Independent distribution at no values
            return z.new_zeros(z.shape[:-1])
        log_prob = self.likelihood(z.unsqueeze(-2), data).log_prob(data.y)
        return torch.where(data.mask, log_prob, torch.zeros_like(log_prob)).sum(-1)

    def log_joint(self, z: Float[Tensor, "*S B D"], data: Context) -> Float[Tensor, "*S B"]:
        """``log p(z, y | x)`` per task: what the Pyro trace's log-probability sums to over tasks."""
        return self.log_prior(z) + self.log_likelihood(z, data)


class FactorModel(PyroModule):
    """A prior and a log factor: control as inference, where no generative likelihood exists.

    ``prior(batch)`` has batch ``[B]``, event ``[D]``; ``factor(z [B, D], data) -> [B]`` is the log factor of each task,
    for PEARL the negative critic loss of the task. The ELBO of this program is the training objective.

    ``kl_weight`` scales the ``z`` site. Scaling it in the guide too (:func:`bayesmeta.inference.guides.guide`) makes
    the ELBO ``E[factor] - kl_weight * KL(q || prior)``.
    """

    def __init__(
        self,
        prior: Callable[[int], Distribution],
        factor: Callable[[Tensor, Any], Tensor],
        kl_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.prior = prior
        self.factor = factor
        self.kl_weight = kl_weight

    @_own_parameters
    def forward(self, batch: int, data: Any) -> Float[Tensor, "*S B 1 D"]:
        """The Pyro program of ``batch`` tasks; ``data`` is handed to ``factor`` as it is."""
        with pyro.plate("task", batch, dim=-2):
            with pyro.poutine.scale(scale=self.kl_weight):
                z = pyro.sample("z", OneRow(self.prior(batch)))
            pyro.factor("optimality", self.factor(z.squeeze(-2), data).unsqueeze(-1))
        return z
