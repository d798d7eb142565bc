"""Rows of activations that a walk keeps: finite ones, without padding, evenly spread."""

from __future__ import annotations

import torch
from torch import Tensor

from fas.errors import CalibrationError


def kept_rows(x: Tensor, mask: Tensor | None, limit: int, where: str) -> Tensor:
    """Return up to ``limit`` activations [n, C] in float32, without padding."""
    if not bool(x.isfinite().all()):
        raise CalibrationError(
            f"the input of {where} has NaN or infinite values; check the weights of the layers before it "
            "and the calibration data"
        )
    if mask is not None:
        x = x[mask.bool()]
    return thinned(x.detach().reshape(-1, x.shape[-1]), limit).to(torch.float32, copy=True)


def thinned(x: Tensor, limit: int) -> Tensor:
    """Return up to ``limit`` rows, evenly spread."""
    if len(x) <= limit:
        return x
    return x[torch.linspace(0, len(x) - 1, limit, device=x.device).round().long()]
