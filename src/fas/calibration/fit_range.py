"""Steps of codes that have levels to spare: a range that is never left, and no finer than pays."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fas.calibration.fit import Fit, counted
from fas.calibration.fit_sparse import SpikeCost
from fas.calibration.points import blocks, each, points
from fas.neurons.adaptive_digit import ENOUGH
from fas.types import Neuron

PLENTY = 256
"""Levels to either side from which on a code is fitted by its range."""
# Time steps at which neurons that adapt are fitted: what is beyond their range at fewer is coded at a higher threshold.
_STEPS = 8
# The range as a multiple of the largest value seen, where the reach of the channel is not beyond: signed digits of
# eight steps then have 122 levels for it, which cost 0.3 % of perplexity on a language model of 135 million parameters.
_HEADROOM = 8
# Smallest reach likewise.
_NEAREST = 1.5
# Largest reach as a multiple of the largest value seen: channels that are silent but at rare tokens (after ReLU) have
# ratios of a thousand, which say nothing about the others.
_FURTHEST = 16
# Of the channels of a site, how many may have a longer tail than the range is made for.
_TAIL = 0.999
# Coarser steps that are tried against a price of spikes, in powers of √2.
_COARSER = 14
# Smallest size of a channel, relative to the mean one of its site, and at all.
_STILL, _TINY = 1e-6, 1e-8


def is_by_range(neuron: Neuron, timesteps: int) -> bool:
    """Whether thresholds are chosen by range: there are levels to spare, or they follow the tokens."""
    return neuron.resolution(timesteps) >= (ENOUGH if neuron.adapts else PLENTY)


def fit_range(
    x: Tensor, neuron: Neuron, timesteps: int, cost: SpikeCost | None = None, *, per_channel: bool, finest: bool = False
) -> Fit:
    """Choose θ so that no activation to come is clipped, and the step as large as its error allows.

    Real models send values at rare tokens that are many times the largest of a thousand tokens before, and all that
    follows depends on them: no mean over recorded activations shows what clipping costs. How far a channel may go is
    told by its neighbours: with m_c the mean magnitude of a channel and p_c the largest one seen, the ratios p_c/m_c of
    all channels of a site are so many draws from the tail of one distribution, of which the highest (but for a
    thousandth) times m_c is the reach of channel c, from 1.5 p_c to 16 p_c. The step is

        u_c = max(8 p_c, reach_c) / resolution,

    or, at a price of spikes, the multiple of reach_c/resolution by a power of √2 at which error and spikes cost least.

    Args:
        x: activations [n, C].
        neuron: the neuron model, of at least ``PLENTY`` levels to a side; one that adapts gets steps u, not a range.
        timesteps: T.
        cost: prices of errors and spikes.
        per_channel: one threshold a channel, or one for all.
        finest: whether the step is reach_c/resolution, the smallest that there is, where no price is paid.

    Returns:
        Parameters of shape (C,) or (), offset 0 and v_0 = θ/2.

    Source: the tail of pooled, normalised samples is the plain form of regional frequency analysis (Dalrymple 1960,
    the index-flood method), by which rare floods of one river are told from those of its neighbours.
    """
    steps = max(timesteps, _STEPS) if neuron.adapts else timesteps
    size = x.abs() if neuron.signed else x.clamp_min(0)
    mean, peak = size.mean(0), size.amax(0)
    # What hardly varies keeps a scale of its site, so that rounding does not make it fire.
    mean = mean.clamp_min(float(mean.mean()) * _STILL + _TINY)
    peak = peak.clamp_min(float(peak.amax()) * _STILL + _TINY)
    reach = torch.maximum(_NEAREST * peak, torch.minimum((peak / mean).quantile(_TAIL) * mean, _FURTHEST * peak))
    if not per_channel:
        peak, reach = peak.amax(), reach.amax()
    smallest = reach / neuron.resolution(steps)
    step = smallest if finest else torch.maximum(_HEADROOM * peak, reach) / neuron.resolution(steps)
    if cost is not None:
        step = _cheapest(x, neuron, steps, cost, smallest)
    half = torch.full_like(step, 0.5)
    threshold = step * neuron.resolution(timesteps)
    fit = Fit(threshold, torch.zeros_like(step), half, torch.zeros_like(step))
    error = (counted(x, fit, neuron, timesteps)[1] - x).square().mean(0)
    return replace(fit, error=error if per_channel else error.mean())


def _cheapest(x: Tensor, neuron: Neuron, timesteps: int, cost: SpikeCost, finest: Tensor) -> Tensor:
    """Return the step (C,) or () at which errors and spikes cost least."""
    lower, upper = neuron.bounds(timesteps)
    table = neuron.spikes(torch.arange(lower, upper + 1, dtype=x.dtype, device=x.device), timesteps)
    # Costs of errors are estimated from few answers, so that those of single channels are half guesses: the geometric
    # mean with their site's is the better one (measured; see docs/real-models.md).
    weight = (cost.error * cost.error.mean()).sqrt()

    def prices(part: slice) -> Tensor:
        seen, base, found = points(x[:, part]), finest[part] if finest.ndim else finest, []
        for power in range(_COARSER):
            step = base * 2 ** (power / 2)
            counts = neuron.settle((seen.values / step + 0.5).floor(), timesteps)
            error = seen.mean((seen.values - counts * step).square())
            found.append(weight[part] * error + cost.spike * seen.mean(table[(counts - lower).long()]))
        return torch.stack(found)

    found = torch.cat(each(prices, blocks(x.shape[1])), 1)
    index = found.argmin(0) if finest.ndim else found.sum(1).argmin()
    return finest * 2 ** (index / 2)
