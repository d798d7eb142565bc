"""Threshold, offset and initial potential for recorded activations, in closed form."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fas.calibration.points import Points, blocks, each, points
from fas.distributed import gathered, share
from fas.types import Neuron

if TYPE_CHECKING:
    from fas.layers.population import Population

# Smallest threshold: far below any activation, far above the rounding of float32 parameters.
_TINY = 1e-8
# Points of a whole site, which many channels fill.
_SITE = {"groups": 4096, "ends": 2048}
# Error that a wider range may add, relative to the variance: −45 dB, far below what 17 levels cost (−19 dB).
_SPARE = 3e-5
_FIELDS = ("threshold", "offset", "v_init", "error")


@dataclass(frozen=True)
class Fit:
    """Parameters of a population, each (C,) or (), and the mean squared error (C,) that they leave."""

    threshold: Tensor
    offset: Tensor
    v_init: Tensor
    error: Tensor


def encode(x: Tensor, fit: Fit, bounds: tuple[int, int]) -> Tensor:
    """Return the mean that neurons with these parameters pass on after T steps of even input.

    Args:
        x: activations [n, C].
        fit: parameters.
        bounds: smallest and largest count; the largest stands for the threshold.
    """
    return counts(x, fit, bounds) * (fit.threshold / bounds[1]) + fit.offset


def counts(x: Tensor, fit: Fit, bounds: tuple[int, int]) -> Tensor:
    """Return the counts themselves."""
    return torch.floor((x - fit.offset) * (bounds[1] / fit.threshold) + fit.v_init).clamp(*bounds)


def counted(x: Tensor, code: Fit | Population, neuron: Neuron, timesteps: int) -> tuple[Tensor, Tensor]:
    """Return the counts of neurons after T steps of even input [n, C], and the mean that they pass on, both [n, C]."""
    resolution = neuron.resolution(timesteps)
    unit = code.threshold / resolution
    gain = neuron.gain(x / unit, resolution) if neuron.adapts else None
    x = x if gain is None else x * gain
    counts = neuron.settle(torch.floor((x - code.offset) / unit + code.v_init), timesteps)
    mean = counts * unit + code.offset
    return counts, mean if gain is None else mean / gain


def mean_spikes(counts: Tensor, neuron: Neuron, timesteps: int) -> float:
    """Return the spikes that counts [n, C] take, in the mean: those of each count are worked out once."""
    lower, upper = neuron.bounds(timesteps)
    each_count = torch.arange(lower, upper + 1, dtype=counts.dtype, device=counts.device)
    times = (counts - lower).long().flatten().bincount(minlength=len(each_count))
    return float((times * neuron.spikes(each_count, timesteps)).sum() / counts.numel())


def drive(x: Tensor, bounds: tuple[int, int]) -> Tensor:
    """Return the part of an input that can make neurons fire: all of it, or what is above zero."""
    return x if bounds[0] < 0 else x.clamp_min(0)


def fit_layer(x: Tensor, bounds: tuple[int, int], *, candidates: int = 40) -> Fit:
    """One threshold for the whole site: the smallest mean squared error over a grid (coarse).

    The grid divides the largest magnitude geometrically by up to 100: heavy tails need a far lower threshold.

    Args:
        x: activations [n, C].
        bounds: smallest and largest count; the largest stands for the threshold.
        candidates: points of the grid.

    Returns:
        Parameters of shape (), offset 0 and v_0 = θ/2; the error is that of the whole site, ().
    """
    seen = points(x.reshape(-1, 1), **_SITE)
    peak = (x.amax() if bounds[0] == 0 else x.abs().amax()).clamp_min(_TINY)
    half, zero = x.new_tensor(0.5), x.new_tensor(0.0)
    factors = torch.logspace(-2, 0, candidates, device=x.device, dtype=x.dtype)
    tried = _with_error(seen, Fit(peak * factors, zero, half, zero), bounds)
    best = tried.error.argmin()
    return Fit(tried.threshold[best], zero, half, tried.error[best])


def fit_channels(
    x: Tensor, bounds: tuple[int, int], start: Fit | None = None, *, centred: bool = True, iterations: int = 10
) -> Fit:
    """Threshold, offset and initial potential of every channel (fine).

    With the counts given, the best step θ/T and offset μ are a linear regression of the activation on
    the count; with these given, the best counts are the nearest levels. Alternating the two is Lloyd's
    fixed point for a uniform code and never raises the error. Several starts: it finds local minima only.

    A code without sign keeps μ = 0, so that silence stays silent; there v_0 moves the decision levels
    instead, chosen by the smallest error that remains once its mean has gone into the bias.

    A code of many levels has some to spare: its range is widened as far as the error hardly grows, since
    activations beyond those recorded will come and would be clipped.

    Args:
        x: activations [n, C].
        bounds: smallest and largest count; the largest stands for the threshold.
        start: parameters to start from besides, such as the coarse ones.
        centred: whether a signed code may have μ ≠ 0.
        iterations: of the fixed point.

    Returns:
        Parameters of shape (C,), and the error at the points that were looked at.

    Source: Lloyd 1982, restricted to uniform levels.
    """

    def fit(part: slice) -> Fit:
        begin = None if start is None else _part(start, part)
        return _fit_block(points(x[:, part]), bounds, begin, centred, iterations)

    # Blocks do not depend on each other: of several processes, and threads of each, every one fits some.
    parts = blocks(x.shape[1])
    fits = each(fit, [parts[i] for i in share(len(parts))])
    none = x.new_empty(0)
    return Fit(*(gathered(torch.cat([none, *(getattr(fit, name) for fit in fits)])) for name in _FIELDS))


def _part(fit: Fit, part: slice) -> Fit:
    """Return the parameters of some channels; those of a layer are all channels'."""
    return Fit(*(value[part] if value.ndim else value for value in (getattr(fit, name) for name in _FIELDS)))


def _fit_block(seen: Points, bounds: tuple[int, int], start: Fit | None, centred: bool, iterations: int) -> Fit:
    half = torch.full_like(seen.values[0], 0.5)
    signed = bounds[0] < 0
    free = signed and centred
    starts = [] if start is None else [(start.threshold / bounds[1] + 0 * half, start.offset + 0 * half)]
    for top, bottom in _ranges(seen):
        if free:
            starts.append(((top - bottom) / (bounds[1] - bounds[0]), (top + bottom) / 2))
        else:
            reach = torch.maximum(top, -bottom) if signed else top
            starts.append((reach / bounds[1], torch.zeros_like(top)))
    trials = (Fit(step.clamp_min(_TINY) * bounds[1], offset, half, half) for step, offset in starts)
    best = best_of(_settled(seen, trial, bounds, iterations, free=free) for trial in trials)
    offset, v_init = best.offset, best.v_init
    best = widened(
        best, seen.variance(seen.values), lambda theta: _with_error(seen, Fit(theta, offset, v_init, half), bounds)
    )
    return best if free else _fit_potential(seen, best, bounds)


def _settled(seen: Points, fit: Fit, bounds: tuple[int, int], iterations: int, *, free: bool) -> Fit:
    """Alternate nearest counts and regression."""
    step, offset = fit.threshold / bounds[1], fit.offset
    for _ in range(iterations):
        nearest = torch.sub(seen.values, offset).div_(step).add_(0.5).floor_().clamp_(*bounds)
        step, offset = _regress(seen, nearest, step, offset, free_offset=free)
        step = step.clamp_min(_TINY)
    return _with_error(seen, Fit(step * bounds[1], offset, fit.v_init, fit.error), bounds)


def widened(fit: Fit, variance: Tensor, tried: Callable[[Tensor], Fit]) -> Fit:
    """Return a fit whose range is as wide as costs no more than −45 dB of the variance.

    Args:
        fit: parameters (C,) or ().
        variance: of the activations, shape of ``fit.error``.
        tried: the fit with another threshold, and its error.
    """
    allowed, widest = fit.error + _SPARE * variance, fit
    for factor in (1.25, 1.5, 2.0, 3.0, 4.0):
        trial = tried(fit.threshold * factor)
        widest = select((trial.error <= allowed) & (variance > 0), trial, widest)
    return widest


def _ranges(seen: Points) -> list[tuple[Tensor, Tensor]]:
    """Upper and lower ends (C,) of several ranges around the bulk of each channel."""
    below = seen.shares.cumsum(0)
    ranks = [int((below < fraction).sum()) for fraction in (0.0, 0.01, 0.05)]
    return [(seen.values[len(below) - 1 - rank], seen.values[rank]) for rank in ranks]


def _regress(seen: Points, counts: Tensor, step: Tensor, offset: Tensor, *, free_offset: bool) -> tuple[Tensor, Tensor]:
    """Least squares of x on counts per channel; channels of one count keep their step."""
    if not free_offset:
        power = seen.mean(counts.square())
        slope = seen.mean(seen.values * counts) / torch.where(power > 0, power, 1)
        return torch.where(power > 0, slope, step), offset
    mean_x, mean_n = seen.mean(seen.values), seen.mean(counts)
    counts = counts - mean_n
    spread = seen.mean(counts.square())
    slope = seen.mean((seen.values - mean_x).mul_(counts)) / spread.clamp_min(_TINY)
    step = torch.where((spread > _TINY) & (slope > 0), slope, step)
    return step, mean_x - step * mean_n


def _with_error(seen: Points, fit: Fit, bounds: tuple[int, int]) -> Fit:
    error = seen.mean((encode(seen.values, fit, bounds) - seen.values).square())
    return Fit(fit.threshold, fit.offset, fit.v_init, error)


def _fit_potential(seen: Points, fit: Fit, bounds: tuple[int, int]) -> Fit:
    """Choose v_0 per channel by the variance of the error: its mean goes into the bias after it."""
    best, spread = fit, seen.variance(encode(seen.values, fit, bounds) - seen.values)
    for value in (0.2, 0.3, 0.4, 0.6, 0.7):
        trial = Fit(fit.threshold, fit.offset, torch.full_like(fit.v_init, value), fit.error)
        wander = seen.variance(encode(seen.values, trial, bounds) - seen.values)
        closer = wander < spread
        best = select(closer, trial, best)
        spread = torch.where(closer, wander, spread)
    return _with_error(seen, best, bounds)


def best_of(trials: Iterable[Fit]) -> Fit:
    """Return the smallest error of every channel; of equal ones the first."""
    return functools.reduce(lambda best, trial: select(trial.error < best.error, trial, best), trials)


def select(first: Tensor, a: Fit, b: Fit) -> Fit:
    """Take channels from a where ``first`` (C,) or () holds, else from b."""
    return Fit(*(torch.where(first, getattr(a, name), getattr(b, name)) for name in _FIELDS))
