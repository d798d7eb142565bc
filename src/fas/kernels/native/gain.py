"""The gain of a token, by which neurons that adapt multiply it before they count (``AdaptiveDigit.gain``)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from fas.neurons.adaptive_digit import MOST


# Sums in the lanes of a vector: in float64 every order of a sum of float32 numbers gives the same.
@njit(fastmath={"reassoc", "nsz"}, inline="never", error_model="numpy")
def _total(x: Any, scale: Any, signed: Any) -> Any:
    total = np.float64(0)
    if signed:
        for c in range(len(x)):
            total += np.float64(abs(x[c] * scale[c]))
    else:
        for c in range(len(x)):
            level = x[c] * scale[c]
            total += np.float64(scale[0] - scale[0] if level <= 0 else level)
    return total


@njit(inline="never", error_model="numpy")
def _beyond(x: Any, scale: Any, signed: Any, bound: Any) -> Any:
    """Return how many levels exceed a bound: unlike a maximum, LLVM adds them up in vectors."""
    number, sign = np.int64(0), scale.dtype.type(signed)
    for c in range(len(x)):
        level = x[c] * scale[c]
        number += (level > bound) | (-level * sign > bound)
    return number


@njit(inline="never", error_model="numpy")
def gain_of(x: Any, scale: Any, least: Any, lower: Any, upper: Any) -> Any:
    """Return the gain of a token, 1 where ``least`` is 0, NaN where an activation is."""
    if least == 0:
        return np.float64(1)
    total = _total(x, scale, lower < 0)
    if total != total:
        return total
    lift = min(max(least * len(x) / total, 1.0), MOST)
    gain = math.ldexp(1.0, math.frexp(lift)[1] - 1)
    if _beyond(x, scale, lower < 0, scale.dtype.type(upper / gain)) == 0:
        return gain
    peak = np.float64(0)
    for c in range(len(x)):
        level = np.float64(x[c] * scale[c])
        peak = max(peak, abs(level) if lower < 0 else level)
    return math.ldexp(1.0, math.frexp(max(upper / peak, 1 / MOST**2))[1] - 1)
