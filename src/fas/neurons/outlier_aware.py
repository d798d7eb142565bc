"""Phase-coded neuron with two ranges: fine levels for the bulk of the values, coarse ones for outliers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fas.checks import check_whole
from fas.neurons._digits import leading, ones
from fas.types import Neuron


@dataclass(frozen=True)
class OutlierAware(Neuron):
    """Outlier-aware neuron: a gate lets one of two bit-plane coders send the binary digits of a value.

    With the gate M = ``[|v| > θ_nor]`` a value below θ_nor is sent in steps of θ_nor/(2^T − 1), one above it in
    steps of θ_out/(2^T − 1). Either coder sends T digits, so a window holds at most T spikes; one more bit
    per window says which coder speaks. There are 2^T levels up to θ_nor and 2^T − 2^{T−b} above it, on each
    side of zero where the neuron has a sign, with θ_out = 2^b θ_nor.

    Counts are in fine levels: ``resolution`` is 2^b (2^T − 1), and the population's threshold is θ_out.
    A digit is known only when the whole input is, so the code needs the layerwise schedule.

    Attributes:
        outlier_bits: b, how often the outlier range doubles the normal one; counts are exact to T + b = 24.

    Source: LAS (arXiv 2505.09659), outlier-aware threshold neuron: two multi-threshold neurons and the
    mask ``M_out = Θ(|v| − θ_nor)``. Deviation: its two thresholds are free and set by hand per operator; here
    their ratio is a power of two, so that one calibrated threshold per channel sets both and the spikes of
    an outlier are shifted by b bits. It rounds down; here values are rounded by v_0/θ in the normal range
    and to the nearest level in the outlier range.
    """

    signed: bool = True
    outlier_bits: int = 4
    exact_when: ClassVar[Literal["even", "any"]] = "any"
    takes_back: ClassVar[bool] = False
    recursion: ClassVar[Literal["table"]] = "table"

    def __post_init__(self) -> None:
        check_whole("outlier_bits", self.outlier_bits, 1, 16)

    @property
    def even_levels(self) -> bool:
        """Levels of the outlier range lie 2^b apart."""
        return False

    def resolution(self, timesteps: int) -> int:
        """T digits, b bits higher up."""
        return 2**self.outlier_bits * (2**timesteps - 1)

    def levels(self, timesteps: int) -> int:
        """Those of the normal range and, beyond it, those of the outlier range."""
        most = 2**timesteps
        positive = most - 1 + most - max(1, most // 2**self.outlier_bits)
        return 2 * positive + 1 if self.signed else positive + 1

    def settle(self, levels: Tensor, timesteps: int) -> Tensor:
        """Keep levels of the normal range and round the others to multiples of 2^b."""
        size = levels.abs().clamp(max=self.resolution(timesteps))
        unit = 2**self.outlier_bits
        coarse = ((size + unit // 2) / unit).floor() * unit
        size = torch.where(size < 2**timesteps, size, coarse)
        return size * levels.sign() if self.signed else torch.where(levels > 0, size, torch.zeros_like(size))

    def window(self, drive: Tensor, v_init: Tensor, timesteps: int) -> Tensor:
        """Return the value of the digits sent up to each step, most significant first."""
        count = self.settle((drive * self.resolution(timesteps) + v_init).floor(), timesteps)
        whole, unit = self._digits(count, timesteps)
        return leading(whole, timesteps) * (unit * count.sign())

    def spikes(self, count: Tensor, timesteps: int) -> Tensor:
        """Return the number of ones among the binary digits."""
        return ones(self._digits(count, timesteps)[0], timesteps)

    def _digits(self, count: Tensor, timesteps: int) -> tuple[Tensor, Tensor]:
        """Return what the coder in charge sends, a whole number below 2^T, and what one of it is worth."""
        size = count.abs()
        unit = torch.where(size < 2**timesteps, 1.0, 2.0**self.outlier_bits).to(size.dtype)
        return size / unit, unit
