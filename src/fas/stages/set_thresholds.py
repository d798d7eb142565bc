"""Thresholds from the activations of the dense network: where stage 1 starts, and the baseline."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fas.calibration.fit import Fit, drive, fit_channels, fit_layer
from fas.calibration.fit_uneven import fit_uneven
from fas.calibration.teacher import neuron_tensors
from fas.calibration.walk import Visit, walk
from fas.surgery.parameters import undone_on_error
from fas.types import Batches, Kept, Progress, Record, Stage


@dataclass(frozen=True)
class SetThresholds(Stage):
    """Set every threshold from what the dense network shows, one site independent of the other.

    Attributes:
        rule: ``maximum`` of the magnitude (Diehl et al. 2015), ``percentile`` of it (Rueckauer et al. 2017),
            or ``error``, the smallest mean squared error per channel.
        percentile: in percent, for the rule of that name.
    """

    rule: Literal["maximum", "percentile", "error"] = "error"
    percentile: float = 99.9

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 100:
            raise ValueError(f"percentile is {self.percentile}; expected a number above 0 and at most 100")

    prepares: ClassVar[bool] = True

    def run(self, model: Any, batches: Batches, progress: Progress | None = None, kept: Kept | None = None) -> Record:
        """Set thresholds; v_0 = θ/2, and no offset unless the rule is ``error``."""
        began, steps = time.perf_counter(), model.timesteps

        def visit(seen: Visit) -> None:
            population, per_channel = seen.population, bool(seen.population.log_threshold.ndim)
            bounds = population.neuron.bounds(steps)
            x = drive(seen.ann, bounds)
            if self.rule != "error":
                fit = self._by_magnitude(x, bounds, per_channel=per_channel)
            elif not population.neuron.even_levels:
                fit = fit_uneven(x, population.neuron, steps, per_channel=per_channel)
            else:
                fit = fit_layer(x, bounds)
                fit = fit_channels(x, bounds, fit) if per_channel else fit
            population.set(fit.threshold, fit.offset, fit.v_init)

        with undone_on_error(neuron_tensors(model)):
            walk(model, model.sites, batches, visit, kept=kept, progress=progress)
        return self.record({"seconds": time.perf_counter() - began})

    def _by_magnitude(self, x: Tensor, bounds: tuple[int, int], *, per_channel: bool) -> Fit:
        size = x.abs() if bounds[0] < 0 else x.clamp_min(0)
        size = size if per_channel else size.flatten()
        share = 1.0 if self.rule == "maximum" else self.percentile / 100
        rank = max(1, round(share * len(size)))
        # A channel that is silent in the data keeps the scale of its layer.
        top = size.kthvalue(rank, dim=0).values
        top = torch.where(top > 0, top, size.amax().clamp_min(1e-6))
        return Fit(top, torch.zeros_like(top), torch.full_like(top, 0.5), torch.zeros_like(top))
