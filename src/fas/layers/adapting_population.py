"""A population whose thresholds follow the size of each token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fas.layers.once import Once
from fas.layers.population import Form, Population


class AdaptingPopulation(Population):
    """Neurons that adapt (``Neuron.adapts``): a token is multiplied by its gain, coded, and divided by it again.

    Gains are powers of two, so that neither rounds. ``counts`` are those of the multiplied token.
    """

    def __init__(self, *arguments: Any, readers: int = 1, **named: Any) -> None:
        super().__init__(*arguments, readers=readers, **named)
        # Of counts, which the neurons and every reader ask for.
        self._gains = Once(readers + 1)

    def gain_of_counts(self, x: Tensor) -> Tensor:
        """Return the gain of each token of x [*B, C], [*B, 1], once for the neurons and all that read their counts."""
        return self._gains(x, "gain", self.gain)

    def reset(self) -> None:
        """Forget the state of an unfinished window."""
        super().reset()
        self._gains.reset()

    @torch.no_grad()
    def gain(self, x: Tensor, most: int | None = None) -> Tensor:
        """Return the gain of each token of x [*B, C], [*B, 1]; ``most`` is the largest count, at T unless given."""
        # Parameters stay float32 under a half-precision model; the arithmetic follows them.
        x = x.to(torch.promote_types(x.dtype, self.log_threshold.dtype))
        resolution = self.neuron.resolution(self.simulation.timesteps)
        if most is None and not self.differentiates(x):
            return self.neuron.gain(x * self.code(x.dtype).scale, resolution)
        most = most or resolution
        return self.neuron.gain(x * (most / self.threshold), most)

    def quantised(self, x: Tensor) -> Tensor:
        """Return what the quantised network has in place of the spikes."""
        gain = self.gain(x, self.simulation.levels)
        return super().quantised(x * gain) / gain

    def _encode(self, x: Tensor, form: Form) -> Tensor:
        if self.simulation.network != "snn" or not self.active:
            return super()._encode(x, form)
        self.check()
        work = x.to(torch.promote_types(x.dtype, self.log_threshold.dtype))
        gain = self.gain_of_counts(x) if form == "counts" else self.gain(work)
        encoded = super()._encode(work * gain, form)
        return encoded if form == "counts" else (encoded / gain).to(x.dtype)
