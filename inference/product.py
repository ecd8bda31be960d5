"""Product of learned Gaussian factors: PEARL's encoder.

Every datum gives one Gaussian factor in the task latent and the posterior is their product, so evidence adds in natural
parameters and the belief is independent of the order of the data (Rakelly et al. 2019, section 4.1).

The published product leaves the prior out: without data the belief is set to N(0, I), with data the prior is forgotten.
That is wrong at every context size but one (the best it can do in the normal-normal model is variance s2/n instead of
1/(1/tau2 + n/s2)). With ``prior_factor=True`` the prior is the first factor and the product can be exact at every size.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesmeta.inference.beliefs import DiagonalGaussian, FactorsOnly, FullGaussian
from bayesmeta.models.networks import MLP
from bayesmeta.types import Context

ProductBelief = DiagonalGaussian | FactorsOnly | FullGaussian


class ProductOfGaussians(nn.Module):
    r"""``q(z | c) \propto p(z) \prod_n N(z; mu_n, Sigma_n)`` with ``mu_n, Sigma_n`` from an MLP on each datum.

    ``covariance="diagonal"`` is PEARL's: ``sigma_n^2 = softplus(v_n)``, clamped below at 1e-7. ``"full"`` reads each
    datum as ``rank`` linear observations of the latent with unit noise, ``b_n = A_n z + eps``: its factor has precision
    ``A_n^T A_n`` and information ``A_n^T b_n``, and the product is Bayesian linear regression in learned features. It
    is a proper distribution only with the prior factor.

    Gradients flow through the belief into the encoder; nothing is detached here.
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        latent_dim: int,
        *,
        widths: Sequence[int] = (64, 64),
        prior_factor: bool = True,
        covariance: str = "diagonal",
        rank: int = 1,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        if covariance not in ("diagonal", "full"):
            raise ValueError(f"covariance: expected 'diagonal' or 'full', got {covariance!r}")
        if covariance == "full" and not prior_factor:
            raise ValueError("covariance='full' needs prior_factor=True: few data leave the product improper")
        self.latent_dim, self.prior_factor, self.rank = latent_dim, prior_factor, rank
        self.diagonal = covariance == "diagonal"
        out_dim = 2 * latent_dim if self.diagonal else rank * (latent_dim + 1)
        self.net = MLP(x_dim + y_dim, out_dim, widths, bf16=bf16)
        self.x_dim, self.y_dim = x_dim, y_dim

    def init(self, batch: int) -> ProductBelief:
        """The prior N(0, I)."""
        information = self.net.biases[0].new_zeros(batch, self.latent_dim)
        if self.diagonal and self.prior_factor:
            return DiagonalGaussian(information, torch.ones_like(information))
        if self.diagonal:
            return FactorsOnly(information, torch.zeros_like(information))
        eye = torch.eye(self.latent_dim, dtype=information.dtype, device=information.device)
        return FullGaussian(information, eye.expand(batch, -1, -1))

    def update(self, belief: ProductBelief, data: Context) -> ProductBelief:
        """Multiply the belief by the factors of the data. Raises ValueError on data of the wrong width."""
        if (data.x.shape[-1], data.y.shape[-1]) != (self.x_dim, self.y_dim):
            raise ValueError(
                f"ProductOfGaussians: expected data with x [B, N, {self.x_dim}] and y [B, N, {self.y_dim}], got "
                f"{tuple(data.x.shape)} and {tuple(data.y.shape)}; build the encoder from the family's spec"
            )
        mask = data.mask.unsqueeze(-1)
        rows = torch.cat([data.x, data.y], -1).masked_fill(~mask, 0.0)
        information, precision = self._factors(self.net(rows), mask)
        return type(belief)(belief.information + information, belief.precision + precision)

    def _factors(self, out: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Summed natural parameters of all factors: ``[B, D]`` and ``[B, D]`` or ``[B, D, D]``."""
        if self.diagonal:
            mean, raw = out.chunk(2, -1)
            precision = F.softplus(raw).clamp_min(1e-7).reciprocal() * mask
            return (mean * precision).sum(1), precision.sum(1)
        observations = (out * mask).reshape(out.shape[0], -1, self.latent_dim + 1)  # rows of (A_n, b_n)
        design, target = observations[..., :-1], observations[..., -1:]
        transposed = design.transpose(1, 2)
        return (transposed @ target).squeeze(-1), transposed @ design
