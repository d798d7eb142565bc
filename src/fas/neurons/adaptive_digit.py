"""Signed digits whose thresholds follow the size of each token, by a power of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fas.neurons.signed_digit import SignedDigit
from fas.types import Neuron


@dataclass(frozen=True)
class AdaptiveDigit(SignedDigit):
    """Signed-digit neuron of a population that lowers all its thresholds by one power of two for each token.

    With z_c = x_c/u_c the activation in levels and N_max the largest count, the thresholds of a token are divided by
    2^e, and what its spikes stand for likewise, where

        e = min(⌊log2(least / mean_c ``|z_c|``)⌋, ⌊log2(N_max / max_c ``|z_c|``)⌋), the first from 0 to 16.

    So a token whose activations are small throughout is coded in at least ``least``/2 levels of mean size, and no
    neuron is ever clipped: where a layer's output is normalised after it, or its input before, small tokens matter as
    much as large ones, and thresholds that fit all tokens round them away. (Gemma's post-norms; WikiText's spaces are
    a thousand times smaller than other tokens at ``down_proj``.)

    Below a hundred levels to either side (T < 5) there are none to give away, and all tokens have the same thresholds.

    Costs, per token and population, one mean and one maximum over the channels, and a shift of each sum downstream;
    they are counted as such. The exponent is one number for the whole layer, so a neuron no longer works alone.

    Attributes:
        least: mean count below which thresholds are lowered, above 0.

    Source: one shared exponent per block of numbers is block floating point (Wilkinson 1963, Rounding Errors in
    Algebraic Processes); thresholds that follow the input are adaptive thresholds (Bellec et al. 2018, arXiv
    1803.09574), there per neuron and over time.
    """

    least: float = 4.0
    adapts: ClassVar[bool] = True
    recursion: ClassVar[Literal["table"]] = "table"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.least < float("inf"):
            raise ValueError(f"least is {self.least!r}; expected a mean count, a number above 0")

    def gain(self, levels: Tensor, most: int) -> Tensor:
        """Return 2^e, [*B, 1], of tokens [*B, C] in levels."""
        if most < ENOUGH:
            return super().gain(levels, most)
        size, width = levels.abs() if self.signed else levels.clamp_min(0), levels.shape[-1]
        # In float64 every order of a sum of float32 numbers gives the same, so that all kernels agree on the exponent.
        total, peak = size.double().sum(-1, keepdim=True), size.amax(-1, keepdim=True).double()
        ratio = torch.minimum((self.least * width / total).clamp(1, MOST), most / peak).clamp_min(1 / MOST**2)
        # The largest power of two up to it: the bits of a float64 number that say its exponent, all set for NaN.
        power = (ratio.view(torch.int64) & (0x7FF << 52)).view(torch.float64)
        return torch.where(ratio.isnan(), ratio, power).to(levels.dtype)

    def unadapted(self) -> Neuron:
        """Return the signed-digit neuron with its fields."""
        return SignedDigit(self.signed, self.max_spikes, self.price, self.wide)


ENOUGH = 100
"""Levels to either side from which on thresholds follow the tokens."""
MOST = 2.0**16
"""Largest gain, also of a token without activations."""
