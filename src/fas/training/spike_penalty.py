"""The number of spikes as a loss: exact in value, with a gradient that silences what hardly fires."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fas.layers.adapting_population import AdaptingPopulation
from fas.layers.population import Population
from fas.surgery.probe import hooked
from fas.surgery.replace import populations


def soft_spikes(population: Population, x: Tensor) -> Tensor:
    """Return the spikes of a window of even input, with a gradient towards fewer.

    In levels z = (x − μ)/θ · resolution + v_0/θ − 1/2 the silent interval is |z| ≤ 1/2. A rate code sends |z| spikes,
    up to rounding; digits grow like the logarithm and get the gradient of log2(1 + |z|), which is |z| at 0 and 1 as
    well. Silent neurons get none: nothing is won by pulling them further. Clipped ones do: they fire most.

    Args:
        population: neurons whose thresholds are set.
        x: their input [*B, C].

    Returns:
        Shape of ``x``, float32 at least.

    Source: straight-through estimation, Bengio et al. 2013 (arXiv 1308.3432).
    """
    steps, neuron = population.simulation.timesteps, population.neuron
    x = x.to(torch.promote_types(x.dtype, population.log_threshold.dtype))
    if isinstance(population, AdaptingPopulation):
        x = x * population.gain(x)
    level = (x - population.offset) * (neuron.resolution(steps) / population.threshold) + population.v_init
    with torch.no_grad():
        counts = neuron.settle(torch.floor(level), steps)
        spikes = neuron.spikes(counts, steps)
    size = torch.where(counts != 0, (level - 0.5).abs(), torch.zeros_like(level))
    if neuron.emission == "digits":
        size = torch.log2(1 + size)
    return spikes + (size - size.detach())


class Penalty:
    """What the spikes of the latest forward pass cost: price · mean spikes per neuron over all sites.

    Attributes:
        price: in nats per spike per neuron.
    """

    def __init__(self, price: float) -> None:
        self.price = price
        self._spikes: list[Tensor] = []
        self._neurons = 0
        self._latest: dict[str, Tensor] = {}

    def begin(self, *_: Any) -> None:
        """Forget earlier passes."""
        self._spikes, self._neurons, self._latest = [], 0, {}

    def see(self, population: Population, arguments: tuple[Tensor, ...]) -> None:
        """Count the spikes of one call; every layer of a site asks for those of the same tensor."""
        x = arguments[0]
        if x is self._latest.get(population.path):
            return
        self._latest[population.path] = x
        spikes = soft_spikes(population, x)
        self._spikes.append(spikes.sum())
        self._neurons += spikes.numel()

    def cost(self) -> Tensor:
        """Return the cost, a scalar with a gradient."""
        return self.price * torch.stack(self._spikes).sum() / self._neurons


@contextmanager
def penalised(model: nn.Module, price: float) -> Iterator[Penalty | None]:
    """Watch every population of a model while the block runs.

    Yields:
        The penalty, whose cost is that of the model's latest forward pass; None where there is no price or no spike.
    """
    neurons = populations(model).values()
    if not (price and neurons):
        yield None
        return
    penalty = Penalty(price)
    # Blocks that are recomputed in the backward pass are seen again; the next pass begins from nothing.
    begin = model.register_forward_pre_hook(penalty.begin)
    with hooked([begin, *(p.register_forward_pre_hook(penalty.see) for p in neurons)]):
        yield penalty
