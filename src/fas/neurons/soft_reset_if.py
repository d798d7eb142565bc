"""Integrate-and-fire neuron with soft reset: binary spikes that cannot be taken back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fas.types import Emission, RateNeuron


@dataclass(frozen=True)
class SoftResetIF(RateNeuron):
    """IF neuron with reset by subtraction: s_t = [v_{t-1} + x_t ≥ θ], v_t = v_{t-1} + x_t − θ s_t.

    Firing at equality is what makes the count equal QCFS. Counts run from 0 to T, so it stands after
    non-negative activations only.

    Source: Rueckauer et al. 2017 (soft reset); Bu et al., ICLR 2022 (v_0 = θ/2 and QCFS).
    """

    signed: ClassVar[bool] = False  # type: ignore[misc]
    # An early spike is never undone.
    exact_when: ClassVar[Literal["even", "any"]] = "even"
    emission: ClassVar[Emission] = "binary"
    takes_back: ClassVar[bool] = False
    recursion: ClassVar[Literal["binary"]] = "binary"

    def step(
        self, current: Tensor, potential: Tensor, count: Tensor, threshold: Tensor, timesteps: int
    ) -> tuple[Tensor, Tensor]:
        """Fire once when the potential reaches the threshold."""
        potential = potential + current
        spikes = (potential >= threshold).to(potential.dtype)
        return spikes, potential - threshold * spikes

    def scan(self, levels: Tensor, count: Tensor, timesteps: int) -> Tensor:
        """N_t = max(N_{t-1}, min(N_{t-1} + 1, F_t)), one step after the other."""
        counts = []
        for level in levels:
            count = torch.maximum(count, torch.minimum(count + 1, level))
            counts.append(count)
        return torch.stack(counts)
