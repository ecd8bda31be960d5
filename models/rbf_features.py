"""Features of the input that make Bayesian linear regression a Gaussian process."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_REACH = 6.0  # standard deviations at which what is left of a Gaussian, 2e-8 of its peak, is below float32's precision


class RBFFeatures(torch.nn.Module):
    r"""Cosines and sines whose kernel is ``scale^2 exp(-(x - x')^2 / (2 length^2))`` for ``|x - x'| <= width``.

    A kernel of period ``P`` is a sum of cosines of the frequencies ``\omega_j = 2 \pi j / P``. With the weights
    ``s_j`` of the RBF kernel's spectral density, its sum over all shifts by ``P`` is

        ``k(r) = \sum_j s_j cos(\omega_j r)``, ``s_j \propto exp(-(\omega_j length)^2 / 2)``,

    so that ``sqrt(s_j) (cos, sin)(\omega_j x)`` are features. Two things are left out: the shifted copies, which begin
    ``P - width = 6 length`` away, and frequencies with ``\omega_j length > 6``. Both are below 1e-7 of ``scale^2``.
    """

    frequencies: Tensor
    amplitudes: Tensor

    def __init__(self, *, length: float, scale: float = 1.0, width: float) -> None:
        super().__init__()
        if not (length > 0 and scale > 0 and width > 0):
            raise ValueError(f"RBFFeatures: expected length, scale, width > 0, got {length}, {scale} and {width}")
        period = width + _REACH * length
        count = math.ceil(_REACH * period / (2 * math.pi * length))
        index = torch.arange(count + 1, dtype=torch.float64)
        frequencies = 2 * math.pi / period * index
        spectrum = scale**2 * math.sqrt(2 * math.pi) * length / period * torch.exp(-0.5 * (frequencies * length) ** 2)
        spectrum[1:] *= 2  # a cosine stands for the frequency and its negative
        self.register_buffer("frequencies", frequencies.float())
        self.register_buffer("amplitudes", spectrum.sqrt().float())
        self.dim = 2 * count + 1

    def forward(self, x: Float[Tensor, "B N 1"]) -> Float[Tensor, "B N D"]:
        frequencies, amplitudes = self.frequencies.to(x), self.amplitudes.to(x)  # a family's data are on any device
        angle = x * frequencies
        return torch.cat([amplitudes * angle.cos(), amplitudes[1:] * angle[..., 1:].sin()], -1)
