"""Thresholds of neurons whose levels are not evenly spaced, from recorded activations."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fas.calibration.fit import Fit, best_of, counted, widened
from fas.calibration.points import points
from fas.types import Neuron

# Below this share of the largest magnitude a range loses more at its end than it gains inside.
_SMALLEST, _CANDIDATES = 0.1, 16


def fit_uneven(x: Tensor, neuron: Neuron, timesteps: int, *, per_channel: bool) -> Fit:
    """Choose θ by the smallest mean squared error over shares of the largest magnitude.

    Where the code has levels to spare the range is widened as far as the error hardly grows (``fit_channels``):
    activations beyond those recorded will come and would be clipped.

    Args:
        x: activations [n, C].
        neuron: the neuron model.
        timesteps: T.
        per_channel: one threshold a channel, or one for all.

    Returns:
        Parameters of shape (C,) or (), offset 0 and v_0 = θ/2.
    """
    size = x.abs() if neuron.signed else x.clamp_min(0)
    largest = size.amax()
    # A channel that is silent in the data keeps the scale of its layer.
    top = torch.where(size.amax(0) > 0, size.amax(0), largest) if per_channel else largest
    top = top.clamp_min(1e-6)
    seen = points(x)
    half, zero, variance = torch.full_like(top, 0.5), torch.zeros_like(top), seen.variance(seen.values)
    variance = variance if per_channel else x.var(correction=0)

    def tried(threshold: Tensor) -> Fit:
        fit = Fit(threshold, zero, half, variance)
        error = seen.mean((counted(seen.values, fit, neuron, timesteps)[1] - seen.values).square())
        return replace(fit, error=error if per_channel else error.mean())

    shares = torch.logspace(0, torch.log10(torch.tensor(_SMALLEST)), _CANDIDATES).tolist()
    return widened(best_of(tried(top * share) for share in shares), variance, tried)
