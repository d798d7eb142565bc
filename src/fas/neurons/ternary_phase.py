"""Neuron that sends its count digit by digit in balanced ternary: every spike is +1, −1 or absent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fas.types import Neuron

# float32 holds whole numbers up to 2^24; (3^15 − 1)/2 is below that, (3^16 − 1)/2 above.
_LONGEST = 15


@dataclass(frozen=True)
class TernaryPhase(Neuron):
    """Balanced-ternary neuron: N_T = Σ_t s_t · 3^{T−t} with s_t ∈ {−1, 0, +1}, after the window of its input.

    The signed neurons of a network send spikes of both signs anyway; if the weight of a spike falls by 3 and
    not by 2 from step to step, every string of signs is another number. T steps carry 3^T levels, (3^T − 1)/2
    on each side of zero (T = 4: 81, where bit planes with a sign have 31), in at most T spikes. What has been
    sent after step t is the nearest number that t digits can say: its error is below half the weight of
    that step. A layer downstream needs no multiplication: it triples its sum (a shift and an addition) and adds.

    Without ``signed`` the count is not negative, though single spikes may be: 2 is +3 −1. Compare with other
    codes by levels and spikes, not by T. A digit needs the whole input, so the code needs the layerwise schedule.

    Raises:
        ValueError: more than 15 steps, whose counts float32 does not hold exactly.

    Source: balanced ternary numerals, Knuth, The Art of Computer Programming 2, section 4.1; phase coding by
    weighted spikes, Kim et al. 2018 (Neurocomputing 311), there with base 2 and one sign.
    """

    signed: bool = True
    exact_when: ClassVar[Literal["even", "any"]] = "any"
    recursion: ClassVar[Literal["table"]] = "table"

    def resolution(self, timesteps: int) -> int:
        """(3^T − 1)/2: the largest number of T balanced digits."""
        if timesteps > _LONGEST:
            raise ValueError(
                f"timesteps is {timesteps}: ternary_phase runs at most {_LONGEST} steps, whose counts float32 holds "
                "exactly; 8 steps have 6,561 levels"
            )
        return (3**timesteps - 1) // 2

    def window(self, drive: Tensor, v_init: Tensor, timesteps: int) -> Tensor:
        """Return the value of the digits sent up to each step, most significant first."""
        count = (drive * self.resolution(timesteps) + v_init).floor().clamp(*self.bounds(timesteps))
        return torch.stack(_digits(count, timesteps)).cumsum(0)

    def spikes(self, count: Tensor, timesteps: int) -> Tensor:
        """Return the number of digits that are not zero."""
        return torch.stack([digit != 0 for digit in _digits(count, timesteps)]).sum(0).to(count.dtype)


def _digits(count: Tensor, timesteps: int) -> list[Tensor]:
    """Return s_t · 3^{T−t} for every step: the multiple of the weight that is nearest to what is left."""
    sent = []
    for lower in range(timesteps - 1, -1, -1):
        weight = 3**lower
        digit = (count / weight).round() * weight
        sent.append(digit)
        count = count - digit
    return sent
