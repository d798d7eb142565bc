"""Integrate-and-fire neuron with positive and negative spikes: takes back what came too early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fas.types import Emission, RateNeuron


@dataclass(frozen=True)
class SignedIF(RateNeuron):
    """Signed IF: s_t = +1 if v ≥ θ, −1 if v < 0 and the count is above its lower bound, else 0.

    ``v`` is the potential after the current has been added, v_{t-1} + x_t. With ``signed`` the lower
    bound is −T, so that the neuron carries values of both signs (GELU, LayerNorm outputs); without it is 0
    and a negative spike only takes back an earlier positive one.

    Source: Hu et al. 2023 (Fast-SNN, arXiv 2305.19868), lower bound 0; You et al. 2024 (SpikeZIP-TF,
    arXiv 2406.03470), the ST-BIF neuron with a negative lower bound.
    """

    signed: bool = True
    # One correction a step: uneven input can leave the count short at the end of the window.
    exact_when: ClassVar[Literal["even", "any"]] = "even"
    emission: ClassVar[Emission] = "ternary"
    recursion: ClassVar[Literal["ternary"]] = "ternary"

    def step(
        self, current: Tensor, potential: Tensor, count: Tensor, threshold: Tensor, timesteps: int
    ) -> tuple[Tensor, Tensor]:
        """Fire +1 at or above the threshold, −1 below zero while the count may still fall."""
        lower, upper = self.bounds(timesteps)
        potential = potential + current
        rise = (potential >= threshold) & (count < upper)
        fall = (potential < 0) & (count > lower)
        spikes = rise.to(potential.dtype) - fall.to(potential.dtype)
        return spikes, potential - threshold * spikes

    def scan(self, levels: Tensor, count: Tensor, timesteps: int) -> Tensor:
        """N_t = clip(N_{t-1} + sign(F_t − N_{t-1}), lower, upper), one step after the other."""
        lower, upper = self.bounds(timesteps)
        counts = []
        for level in levels:
            count = (count + torch.sign(level - count)).clamp(lower, upper)
            counts.append(count)
        return torch.stack(counts)
