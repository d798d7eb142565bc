"""QCFS: the quantised activation whose levels are spike counts, with gradients for its parameters."""

from __future__ import annotations

import torch
from torch import Tensor


class _StraightThroughFloor(torch.autograd.Function):
    """⌊x⌋ with the gradient of the identity."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.floor(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


def floor(x: Tensor) -> Tensor:
    """Floor with a straight-through gradient (Bengio et al. 2013, arXiv 1308.3432)."""
    return _StraightThroughFloor.apply(x) if x.requires_grad else torch.floor(x)


def qcfs(
    x: Tensor, threshold: Tensor, levels: int, *, shift: Tensor | float = 0.5, bounds: tuple[int, int] | None = None
) -> Tensor:
    """Quantise, clip, floor, shift: q(x) = θ/L · clip(⌊x·L/θ + shift⌋, lower, upper).

    Gradients: the floor passes straight through, so ∂q/∂x is 1 where the floor lies inside the clip range
    (ends included) and 0 outside; ∂q/∂θ is q/θ − x/θ inside and lower/L or upper/L outside; ∂q/∂shift is
    θ/L inside and 0 outside.

    Args:
        x: activations [*B, C], any float dtype.
        threshold: θ > 0, shape () or (C,), in the unit of ``x``.
        levels: L ≥ 1, steps between 0 and θ.
        shift: in units of one level; 1/2 rounds to nearest, and equals v_0/θ of the neuron.
        bounds: smallest and largest level; (0, L) unless the code carries a sign (−L, L).

    Returns:
        Quantised activations, shape and dtype of ``x``.

    Raises:
        ValueError: ``levels`` below 1.

    Source: Bu et al., ICLR 2022 (arXiv 2303.04347), equation 12.

    Example:
        >>> import torch
        >>> qcfs(torch.tensor([-1.0, 0.3, 9.0]), torch.tensor(1.0), 4)
        tensor([0.0000, 0.2500, 1.0000])
    """
    if levels < 1:
        raise ValueError(f"levels is {levels}; a quantised activation needs at least 1")
    lower, upper = bounds if bounds is not None else (0, levels)
    scaled = floor(x * (levels / threshold) + shift)
    return (scaled.clamp(lower, upper) * (threshold / levels)).to(x.dtype)
