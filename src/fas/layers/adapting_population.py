"""A population whose thresholds follow the size of each token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fas.layers.population import Form, Population


class AdaptingPopulation(Population):
    """Neurons that adapt (``Neuron.adapts``): a token is multiplied by its gain, coded, and divided by it again.

    Gains are powers of two, so that neither rounds.
    """

    @torch.no_grad()
    def gain(self, x: Tensor, most: int | None = None) -> Tensor:
        """Return the gain of each token of x [*B, C], [*B, 1]; ``most`` is the largest count, at T unless given."""
        # Parameters stay float32 under a half-precision model; the arithmetic follows them.
        x = x.to(torch.promote_types(x.dtype, self.log_threshold.dtype))
        most = most or self.neuron.resolution(self.simulation.timesteps)
        return self.neuron.gain(x * (most / self.threshold), most)

    def quantised(self, x: Tensor) -> Tensor:
        """Return what the quantised network has in place of the spikes."""
        gain = self.gain(x, self.simulation.levels)
        return super().quantised(x * gain) / gain

    def _spiking(self, work: Tensor, form: Form, dtype: torch.dtype, *, by_torch: bool) -> Any:
        known = self._known
        same = known is not None and known.code.timesteps == self.simulation.timesteps
        if not by_torch and (known.code if known and same else self.code(work.dtype)).recursion is not None:
            # Kernels know the rule.
            return super()._spiking(work, form, dtype, by_torch=by_torch)
        gain = self.gain(work)
        encoded = super()._spiking(work * gain, form, work.dtype, by_torch=by_torch)
        return (encoded[0], gain, encoded[2]) if form == "counts" else (encoded / gain).to(dtype)
