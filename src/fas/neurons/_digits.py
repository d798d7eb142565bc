"""Binary digits of counts."""

from __future__ import annotations

import torch
from torch import Tensor


def ones(count: Tensor, digits: int) -> Tensor:
    """Return how many of the lowest binary digits of whole numbers from 0 on are set, shape and dtype of ``count``."""
    found = torch.zeros_like(count)
    for _ in range(digits):
        half = (count / 2).floor()
        found += count - 2 * half
        count = half
    return found


def leading(count: Tensor, digits: int) -> Tensor:
    """Return the value of the leading 1, 2, … digits of whole numbers from 0 on [*B, C], [digits, *B, C]."""
    return torch.stack([(count / 2**lower).floor() * 2**lower for lower in range(digits - 1, -1, -1)])
