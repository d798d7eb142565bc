"""Phase-coded neuron: spikes weigh a power of two by their step, so that T steps carry T bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fas.neurons._digits import leading, ones
from fas.types import Neuron


@dataclass(frozen=True)
class Phase(Neuron):
    """Bit-plane neuron: after the window of its input it sends the binary digits of the count.

    With 2^T − 1 levels up to the threshold, the spike of step t stands for 2^{T−t} of them and has the sign
    of the count; a neuron sends at most T spikes. Compare with a rate code by levels and spikes, not by T.

    A digit is known only when the whole input is, so the code needs the layerwise schedule.

    Source: Kim et al. 2018 (phase coding by weighted spikes); LAS (arXiv 2505.09659).
    """

    signed: bool = True
    exact_when: ClassVar[Literal["even", "any"]] = "any"
    takes_back: ClassVar[bool] = False
    recursion: ClassVar[Literal["table"]] = "table"

    def resolution(self, timesteps: int) -> int:
        """T binary digits."""
        return 2**timesteps - 1

    def window(self, drive: Tensor, v_init: Tensor, timesteps: int) -> Tensor:
        """Return the value of the digits sent up to each step, most significant first."""
        count = (drive * self.resolution(timesteps) + v_init).floor().clamp(*self.bounds(timesteps))
        return leading(count.abs(), timesteps) * count.sign()

    def spikes(self, count: Tensor, timesteps: int) -> Tensor:
        """Return the number of ones among the binary digits."""
        return ones(count.abs(), timesteps)
