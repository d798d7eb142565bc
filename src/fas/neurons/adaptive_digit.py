"""Signed digits whose thresholds follow the size of each token, by a power of two."""

from __future__ import annotations

import math
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

        e = min(⌊log2(least / mean_c |z_c|)⌋, ⌊log2(N_max / max_c |z_c|)⌋),  the first at least 0 and at most 16.

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
        size, width = levels if self.signed else levels.clamp_min(0), levels.shape[-1]
        if levels.numel() == width and levels.device.type == "cpu" and not torch.compiler.is_compiling():
            # One token, as each step of decoding has: Python's numbers take a fifth of the time of tensors of one.
            total, peak = (float(torch.linalg.vector_norm(size, order)) for order in (1, math.inf))
            gain = _gain(self.least * width / total if total else math.inf, most / peak if peak else math.inf)
            return levels.new_full((*levels.shape[:-1], 1), gain)
        total, peak = (torch.linalg.vector_norm(size, order, -1, keepdim=True) for order in (1, math.inf))
        ratio = torch.minimum((self.least * width / total).clamp(1, _MOST), most / peak)
        return _power_below(ratio.clamp_min(1 / _MOST**2))

    def unadapted(self) -> Neuron:
        """Return the signed-digit neuron with its fields."""
        return SignedDigit(self.signed, self.max_spikes, self.price, self.wide)


ENOUGH = 100
"""Levels to either side from which on thresholds follow the tokens."""
# Largest gain, also of a token without activations.
_MOST = 2.0**16
# Bits of a number that say its power of two.
_EXPONENTS = {torch.float32: (torch.int32, 0xFF << 23), torch.float64: (torch.int64, 0x7FF << 52)}


def _gain(lift: float, room: float) -> float:
    ratio = max(min(max(lift, 1.0), _MOST, room), 1 / _MOST**2)
    # Of NaN every comparison is false.
    return 2.0 ** (math.frexp(ratio)[1] - 1) if ratio == ratio else ratio


def _power_below(ratio: Tensor) -> Tensor:
    """Return the largest power of two up to each positive number, float32 or float64; infinity for NaN."""
    whole, exponent = _EXPONENTS[ratio.dtype]
    return (ratio.view(whole) & exponent).view(ratio.dtype)
