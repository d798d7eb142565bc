"""Neuron with graded spikes: its count is the quantised value at every step, whatever came before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fas.types import RateNeuron


@dataclass(frozen=True)
class ClippedCount(RateNeuron):
    """Graded-spike neuron: N_t = clip(⌊(v_0 + Σ_{i≤t} x_i)/θ⌋, lower, upper), s_t = N_t − N_{t-1}.

    A spike carries a small integer, as on Loihi 2. The final count does not depend on the order in
    which the input arrives, so the network equals its quantised twin in every schedule.
    """

    signed: bool = True
    exact_when: ClassVar[Literal["even", "any"]] = "any"
    recursion: ClassVar[Literal["graded"]] = "graded"

    def step(
        self, current: Tensor, potential: Tensor, count: Tensor, threshold: Tensor, timesteps: int
    ) -> tuple[Tensor, Tensor]:
        """Emit as many spikes as bring the potential back into [0, θ), within the bounds."""
        potential = potential + current
        target = torch.floor(potential / threshold) + count
        spikes = target.clamp(*self.bounds(timesteps)) - count
        return spikes, potential - threshold * spikes

    def scan(self, levels: Tensor, count: Tensor, timesteps: int) -> Tensor:
        """N_t = clip(F_t): no recursion."""
        return levels.clamp(*self.bounds(timesteps))
