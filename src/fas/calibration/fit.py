"""Threshold, offset and initial potential for recorded activations, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fas.distributed import gathered, share

# Smallest threshold: far below any activation, far above the rounding of float32 parameters.
_TINY = 1e-8
# Channels fitted together: 4,096 activations of each are 1 MiB.
_BLOCK = 64
# Error that a wider range may add, relative to the variance: −45 dB, far below what 17 levels cost (−19 dB).
SPARE = 3e-5
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


def drive(x: Tensor, bounds: tuple[int, int]) -> Tensor:
    """Return the part of an input that can make neurons fire: all of it, or what is above zero."""
    return x if bounds[0] < 0 else x.clamp_min(0)


def fit_layer(x: Tensor, bounds: tuple[int, int], *, candidates: int = 40) -> Fit:
    """One threshold for the whole site: the smallest mean squared error over a grid (coarse).

    The grid divides the largest magnitude geometrically by up to 100: heavy tails want a threshold far
    below the maximum.

    Args:
        x: activations [n, C].
        bounds: smallest and largest count; the largest stands for the threshold.
        candidates: points of the grid.

    Returns:
        Parameters of shape (), offset 0 and v_0 = θ/2.
    """
    peak = (x.amax() if bounds[0] == 0 else x.abs().amax()).clamp_min(_TINY)
    half, zero = x.new_tensor(0.5), x.new_tensor(0.0)
    best: Fit | None = None
    for factor in torch.logspace(-2, 0, candidates, device=x.device, dtype=x.dtype):
        trial = Fit(peak * factor, zero, half, zero)
        error = (encode(x, trial, bounds) - x).square().mean(0)
        if best is None or error.mean() < best.error.mean():
            best = Fit(trial.threshold, zero, half, error)
    assert best is not None
    return best


def fit_channels(
    x: Tensor,
    bounds: tuple[int, int],
    start: Fit | None = None,
    *,
    centred: bool = True,
    iterations: int = 10,
) -> Fit:
    """Threshold, offset and initial potential of every channel (fine).

    With the counts given, the best step θ/T and offset μ are a linear regression of the activation on
    the count; with these given, the best counts are the nearest levels. Alternating the two is Lloyd's
    fixed point for a uniform code and never raises the error. It is started from several ranges, since
    it finds the nearest local minimum only.

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
        Parameters of shape (C,).

    Source: Lloyd 1982, restricted to uniform levels.
    """
    # A block of channels stays in the cache over all iterations; of several processes each fits some blocks.
    fits = []
    for block in share(-(-x.shape[1] // _BLOCK)):
        part = slice(block * _BLOCK, (block + 1) * _BLOCK)
        begin = None if start is None else _part(start, part)
        fits.append(_fit_block(x[:, part].contiguous(), bounds, begin, centred, iterations))
    none = x.new_empty(0)
    return Fit(*(gathered(torch.cat([none, *(getattr(fit, name) for fit in fits)])) for name in _FIELDS))


def _part(fit: Fit, part: slice) -> Fit:
    """Return the parameters of some channels; those of a layer are all channels'."""
    return Fit(*(value[part] if value.ndim else value for value in (getattr(fit, name) for name in _FIELDS)))


def _fit_block(x: Tensor, bounds: tuple[int, int], start: Fit | None, centred: bool, iterations: int) -> Fit:
    """Fit some channels."""
    half = torch.full_like(x[0], 0.5)
    signed = bounds[0] < 0
    starts = [] if start is None else [(start.threshold / bounds[1] + 0 * half, start.offset + 0 * half)]
    high, low = _ranges(x)
    for top, bottom in zip(high, low, strict=True):
        if signed and centred:
            starts.append(((top - bottom) / (bounds[1] - bounds[0]), (top + bottom) / 2))
        else:
            reach = torch.maximum(top, -bottom) if signed else top
            starts.append((reach / bounds[1], torch.zeros_like(top)))
    best: Fit | None = None
    for step, offset in starts:
        for _ in range(iterations):
            step = step.clamp_min(_TINY)
            nearest = torch.sub(x, offset).div_(step).add_(0.5).floor_().clamp_(*bounds)
            step, offset = _regress(x, nearest, step, offset, free_offset=signed and centred)
        trial = Fit(step.clamp_min(_TINY) * bounds[1], offset, half, half)
        best = _better(best, _with_error(x, trial, bounds))
    assert best is not None
    best = _widened(x, best, bounds)
    return best if signed and centred else _fit_potential(x, best, bounds)


def _widened(x: Tensor, fit: Fit, bounds: tuple[int, int]) -> Fit:
    """Multiply the range by as much as costs no more than ``SPARE`` of the channel's variance."""
    variance = x.var(0, correction=0)
    allowed = fit.error + SPARE * variance
    widest = fit
    for factor in (1.25, 1.5, 2.0, 3.0, 4.0):
        trial = _with_error(x, Fit(fit.threshold * factor, fit.offset, fit.v_init, fit.error), bounds)
        widest = _select((trial.error <= allowed) & (variance > 0), trial, widest)
    return widest


def _ranges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower ends [k, C] of several ranges around the bulk of each channel."""
    ordered = x.sort(0).values
    tails = [round(fraction * (len(x) - 1)) for fraction in (0.0, 0.01, 0.05)]
    return ordered[[len(x) - 1 - tail for tail in tails]], ordered[tails]


def _regress(x: Tensor, counts: Tensor, step: Tensor, offset: Tensor, *, free_offset: bool) -> tuple[Tensor, Tensor]:
    """Least squares of x on counts per channel; channels of one count keep their step."""
    if not free_offset:
        power = counts.square().sum(0)
        return torch.where(power > 0, (x * counts).sum(0) / power.clamp_min(1), step), offset
    mean_x, mean_n = x.mean(0), counts.mean(0)
    counts = counts - mean_n
    spread = counts.square().sum(0)
    slope = (x - mean_x).mul_(counts).sum(0) / spread.clamp_min(_TINY)
    step = torch.where((spread > _TINY) & (slope > 0), slope, step)
    return step, mean_x - step * mean_n


def _with_error(x: Tensor, fit: Fit, bounds: tuple[int, int]) -> Fit:
    error = (encode(x, fit, bounds) - x).square().mean(0)
    return Fit(fit.threshold, fit.offset, fit.v_init, error)


def _fit_potential(x: Tensor, fit: Fit, bounds: tuple[int, int]) -> Fit:
    """Choose v_0 per channel by the variance of the error: its mean goes into the bias behind."""
    best, spread = fit, (encode(x, fit, bounds) - x).var(0, correction=0)
    for value in (0.2, 0.3, 0.4, 0.6, 0.7):
        trial = Fit(fit.threshold, fit.offset, torch.full_like(fit.v_init, value), fit.error)
        wander = (encode(x, trial, bounds) - x).var(0, correction=0)
        closer = wander < spread
        best = _select(closer, trial, best)
        spread = torch.where(closer, wander, spread)
    return _with_error(x, best, bounds)


def _better(best: Fit | None, trial: Fit) -> Fit:
    return trial if best is None else _select(trial.error < best.error, trial, best)


def _select(first: Tensor, a: Fit, b: Fit) -> Fit:
    """Take channels from a where ``first`` holds, else from b."""
    pick = torch.where
    return Fit(
        pick(first, a.threshold, b.threshold),
        pick(first, a.offset, b.offset),
        pick(first, a.v_init, b.v_init),
        pick(first, a.error, b.error),
    )
