"""Reference posteriors by NUTS, refused where the chains have not converged."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from pyro import infer
from torch import Tensor
from torch.distributions import Distribution

from bayesmeta.inference import chain_statistics
from bayesmeta.inference.evidence import checked
from bayesmeta.models.cells import Cells
from bayesmeta.models.randomness import torch_seeded
from bayesmeta.models.task_model import TaskModel
from bayesmeta.types import Context, concat

MAX_RHAT = 1.01
MIN_ESS = 400
MIN_CHAINS = 4
MIN_DRAWS = 8  # fewer have no autocorrelation to speak of


@dataclass(frozen=True)
class Chains:
    """Draws of ``C`` chains of ``S`` each, ``draws [C, S, B, D]``, the data they are conditioned on, and divergences.

    The data are kept because draws cannot be updated: a chain is run anew on all that has been seen.
    """

    draws: Float[Tensor, "C S B D"]
    data: Context
    divergences: int

    @property
    def posterior(self) -> Distribution:
        """The draws with equal weights."""
        points = self.draws.flatten(0, 1).transpose(0, 1)
        return Cells(points, points.new_zeros(points.shape[:2]), points.new_zeros(points.shape[-1]))

    @property
    def rhat(self) -> Float[Tensor, "B D"]:
        return chain_statistics.rhat(self.draws)

    @property
    def ess_bulk(self) -> Float[Tensor, "B D"]:
        return chain_statistics.ess_bulk(self.draws)

    @property
    def ess_tail(self) -> Float[Tensor, "B D"]:
        return chain_statistics.ess_tail(self.draws)

    def faults(self) -> list[str]:
        """Why these chains are no reference; empty if they are one."""
        rhat, ess = self.rhat, torch.minimum(self.ess_bulk, self.ess_tail)
        found = []
        if not bool((rhat <= MAX_RHAT).all()):  # negated, so that NaN is a fault
            found.append(f"R-hat {rhat.max().item():.3f} > {MAX_RHAT}")
        if not bool((ess >= MIN_ESS).all()):
            found.append(f"ESS {ess.min().item():.0f} < {MIN_ESS}")
        if self.divergences:
            found.append(f"{self.divergences} divergences")
        return found


class ReferenceRejected(RuntimeError):
    """The chains did not converge: a comparison with them is invalid, which is not the same as failed.

    ``chains`` are the rejected draws.
    """

    def __init__(self, chains: Chains) -> None:
        self.chains = chains
        super().__init__(
            f"NUTS: expected chains that have converged, got {', '.join(chains.faults())}; comparisons with them are "
            f"invalid. Take more draws or a longer warm-up, or against divergences a higher `accept`; a posterior with "
            f"several modes needs another reference, such as a grid"
        )


class NUTS:
    """The posterior of a task model with a continuous latent by the no-U-turn sampler, run on its Pyro program.

    ``chains`` >= 4 of ``draws`` each after ``warmup`` steps, one after another, all tasks in one chain. Accepted only
    with rank-normalised split R-hat <= 1.01, bulk and tail ESS >= 400 in every coordinate of every task and no
    divergence (Vehtari et al. 2021), else :class:`ReferenceRejected`. The same ``seed`` gives the same draws; the
    global random state is restored. Without data the draws are independent ones from the prior. Steps are tuned to be
    accepted with probability ``accept``: a higher one makes them smaller, which is the cure for divergences.

    Pyro evaluates the program some thousand times, at milliseconds each: a reference for tests, not for training.
    """

    def __init__(
        self,
        model: TaskModel,
        *,
        x_dim: int,
        y_dim: int,
        chains: int = MIN_CHAINS,
        draws: int = 500,
        warmup: int = 300,
        accept: float = 0.8,
        seed: int = 0,
    ) -> None:
        if chains < MIN_CHAINS or draws < MIN_DRAWS:
            raise ValueError(
                f"NUTS: a reference needs at least {MIN_CHAINS} chains of {MIN_DRAWS} draws, got {chains} of {draws}"
            )
        self.model = model
        self.x_dim, self.y_dim = x_dim, y_dim
        self.chains, self.draws, self.warmup, self.accept, self.seed = chains, draws, warmup, accept, seed

    def init(self, batch: int) -> Chains:
        with torch_seeded(self.seed):
            draws = self.model.prior(batch).sample(torch.Size((self.chains, self.draws)))
        return Chains(draws, Context.empty(batch, self.x_dim, self.y_dim, draws.device), divergences=0)

    def update(self, belief: Chains, data: Context) -> Chains:
        """New chains on the data of the belief and ``data`` together.

        Raises ValueError on data of a wrong shape or not finite, ReferenceRejected if the chains have not converged.
        """
        data = checked("NUTS", data, batch=belief.draws.shape[2], x_dim=self.x_dim, y_dim=self.y_dim)
        seen = concat([belief.data, data])
        if seen.size == 0:
            return belief
        runs = [self._chain(seen, self.seed * self.chains + index) for index in range(self.chains)]
        chains = Chains(torch.stack([draws for draws, _ in runs]), seen, sum(count for _, count in runs))
        if chains.faults():
            raise ReferenceRejected(chains)
        return chains

    def _chain(self, data: Context, seed: int) -> tuple[Float[Tensor, "S B D"], int]:
        kernel = infer.NUTS(self.model, target_accept_prob=self.accept)
        mcmc = infer.MCMC(kernel, num_samples=self.draws, warmup_steps=self.warmup, disable_progbar=True)
        with torch_seeded(seed), torch.enable_grad():
            mcmc.run(data)
        divergences = mcmc.diagnostics()["divergences"]["chain 0"]
        return mcmc.get_samples()["z"].squeeze(-2), len(divergences)
