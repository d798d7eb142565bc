"""One initial membrane potential for every neuron."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fas.surgery.replace import populations
from fas.types import V_INIT_MAX, Batches, Kept, Progress, Record, Stage


@dataclass(frozen=True)
class SetPotential(Stage):
    """Set v_0 of every neuron; thresholds stay.

    Attributes:
        share: v_0/θ, at least 0 and below 1: 0 where the paper starts from rest, 1/2 for rounding to nearest.

    Raises:
        ValueError: a share outside its range.
    """

    share: float = 0.5

    prepares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"share is {self.share}; an initial potential is at least 0 and below the threshold (1)")

    @torch.no_grad()
    def run(self, model: Any, batches: Batches, progress: Progress | None = None, kept: Kept | None = None) -> Record:
        """Set v_0 in place; the batches are not read."""
        found = populations(model)
        for population in found.values():
            population.v_init.fill_(min(self.share, V_INIT_MAX))
            population.reset()
        return self.record({"sites": float(len(found))})
