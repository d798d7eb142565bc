"""Threshold, offset and initial potential that buy silence with error, at a price per spike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fas.calibration.fit import Fit
from fas.calibration.points import blocks, each, points
from fas.types import V_INIT_MAX, Neuron

# A channel's sorted activations in as many groups, and as many at either end alone: fewer than fits that try fewer
# codes look at.
_GROUPS, _ENDS = 128, 32
# Steps that are tried, as shares of the range: up to a step that the whole range rounds to silence in.
_STEPS, _WIDEST, _NARROWEST = 12, 1.25, 1 / 160
# Edges of the silent interval that are tried, at evenly spread ranks.
_EDGES = 7
# Relative moves of step and edge in the rounds of refinement.
_ROUNDS = (1.0, 0.5, 0.25, 0.12)
_MOVES = (-0.2, -0.1, 0.1, 0.2)
# Largest count whose spikes are looked up instead of computed.
_TABLE = 4096
# Smallest range of a channel, relative to the largest activation of its site, and at all.
_STILL, _TINY = 1e-5, 1e-8


@dataclass(frozen=True)
class SpikeCost:
    """What errors and spikes of one site cost.

    Attributes:
        error: cost of one unit of a channel's mean squared error, (C,).
        spike: cost of one spike per window of one neuron.
    """

    error: Tensor
    spike: float


def fit_sparse(x: Tensor, neuron: Neuron, timesteps: int, cost: SpikeCost, *, per_channel: bool) -> Fit:
    """Minimise, in every channel, cost of the error + cost of the spikes; the mean error goes into a bias downstream.

    A code is a step u = θ/resolution and the lower edge a of the interval [a, a + u) that is silent: the count is
    ⌊(x − a)/u⌋ within its bounds. What the layers downstream receive is u · count + μ, and the best μ is the mean of
    x − u · count: silence then stands for what most activations are, wherever that lies, and v_0/θ = (μ − a)/u.
    A neuron without sign keeps μ = 0. The best of a grid of steps and edges is refined by moving both; the grid
    is evaluated on groups of each channel's sorted activations, ends alone.

    Args:
        x: activations [n, C].
        neuron: the neuron model.
        timesteps: T.
        cost: prices.
        per_channel: one code a channel, or one for all.

    Returns:
        Parameters of shape (C,) or (), and the mean squared error (C,) that they leave before any correction.

    Source: entropy-constrained quantisation (Chou, Lookabaugh and Gray 1989) with spikes in the place of bits.
    """
    pooled = x if per_channel else x.reshape(-1, 1)
    price = cost.error if per_channel else cost.error.sum(0, keepdim=True)
    spike = cost.spike if per_channel else cost.spike * x.shape[1]
    # What varies less is rounding after layers that see constants, and must not make neurons fire.
    least = max(_STILL * float(x.abs().amax()), _TINY)

    def search(part: slice) -> tuple[Tensor, Tensor]:
        return _Search(pooled[:, part], neuron, timesteps, SpikeCost(price[part], spike), least).best()

    step, edge = (torch.cat(found) for found in zip(*each(search, blocks(pooled.shape[1])), strict=True))
    counts = neuron.settle(torch.floor((pooled - edge) / step), timesteps)
    # μ, the mean of what counts do not say, inside the silent interval.
    mean = (pooled - counts * step).mean(0)
    offset = edge + ((mean - edge) / step).clamp(0, V_INIT_MAX) * step if neuron.signed else torch.zeros_like(mean)
    sent = (counts * step + offset).view(x.shape)
    threshold, v_init = step * neuron.resolution(timesteps), ((offset - edge) / step).clamp(0, V_INIT_MAX)
    if not per_channel:
        threshold, offset, v_init = threshold[0], offset[0], v_init[0]
    return Fit(threshold, offset, v_init, (sent - x).square().mean(0))


class _Search:
    """The cheapest step and edge of some channels."""

    def __init__(self, x: Tensor, neuron: Neuron, timesteps: int, cost: SpikeCost, least: float) -> None:
        seen = points(x, groups=_GROUPS, ends=_ENDS)
        self.points, self.shares = seen.values, seen.shares[:, 0]
        self.neuron, self.timesteps, self.cost = neuron, timesteps, cost
        bottom = self.points[0] if neuron.signed else torch.zeros_like(self.points[0])
        self.range = (self.points[-1] - bottom).clamp_min(least)
        self.step, self.edge = self.range, self.points[0]
        self.least = torch.full_like(self.range, torch.inf)
        lower, upper = neuron.bounds(timesteps)
        counts = torch.arange(lower, upper + 1, dtype=x.dtype, device=x.device)
        self.lower = lower
        self.table = neuron.spikes(counts, timesteps) if upper <= _TABLE else None

    def best(self) -> tuple[Tensor, Tensor]:
        """Return step and edge (C,)."""
        for step, edge in self._grid():
            self._try(step, edge)
        for size in _ROUNDS:
            for move in _MOVES:
                self._try(self.step * (1 + size * move), self.edge)
            for move in _MOVES:
                # The upper edge stays.
                self._try(self.step * (1 + size * move), self.edge - self.step * size * move)
            for move in _MOVES:
                self._try(self.step, self.edge + self.step * size * move)
        return self.step, self.edge

    def _grid(self) -> Iterator[tuple[Tensor, Tensor]]:
        levels = self.neuron.levels(self.timesteps)
        smallest = max(_NARROWEST, 1 / (4 * levels))
        ranks = torch.linspace(0, len(self.points) - 1, _EDGES).round().long()
        # From wide to narrow, and around before beside: of codes that cost the same, such as all that are silent,
        # the first stays, and it is the one that new activations leave last.
        shares = torch.logspace(0, 1, _STEPS, base=smallest / _WIDEST).mul(_WIDEST).tolist()
        for step in (self.range * share for share in shares):
            if not self.neuron.signed:
                for eighths in range(8):
                    yield step, -step * eighths / 8
                continue
            for place in (0.5, 1e-3, 1.0):
                # Silence lies around, begins, or ends at an activation.
                for value in self.points[ranks]:
                    yield step, value - place * step

    def _try(self, step: Tensor, edge: Tensor) -> None:
        if not self.neuron.signed:
            edge = torch.maximum(torch.minimum(edge, torch.zeros_like(edge)), -V_INIT_MAX * step)
        price = self._price(step, edge)
        better = price < self.least
        self.least = torch.where(better, price, self.least)
        self.step, self.edge = torch.where(better, step, self.step), torch.where(better, edge, self.edge)

    def _price(self, step: Tensor, edge: Tensor) -> Tensor:
        counts = self.neuron.settle(torch.sub(self.points, edge).div_(step).floor_(), self.timesteps)
        if self.table is None:
            spikes = self.shares @ self.neuron.spikes(counts, self.timesteps)
        else:
            index = (counts - self.lower).to(torch.int32).view(-1)
            spikes = self.shares @ self.table.index_select(0, index).view(counts.shape)
        left = torch.addcmul(self.points, counts, step, value=-1)
        mean = self.shares @ left
        return self.cost.error * (self.shares @ (left - mean).square()) + self.cost.spike * spikes
