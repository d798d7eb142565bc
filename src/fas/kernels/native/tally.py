"""Spikes per channel, added up where a kernel has them in a register anyway."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic


def _add(typing: Any, address: Any, value: Any) -> Any:
    """Add to a whole number of 64 bits at an address, atomically."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, arguments[1], "monotonic")

    return types.int64(types.int64, types.int64), generate


add: Any = intrinsic(_add)


@njit(inline="never")
def flush(sent: Any, local: Any, channels: Any) -> None:
    """Add a thread's own sums to those at the address ``sent``, int64, and set them to zero."""
    for c in range(channels):
        if local[c] != 0:
            add(sent + 8 * c, np.int64(local[c]))
            local[c] = 0


@njit(inline="always")
def ones(value: Any) -> Any:
    """Return how many bits of a whole number of 32 bits are set."""
    v = np.uint32(value)
    v = np.uint32(v - np.uint32(v >> np.uint32(1) & np.uint32(0x55555555)))
    v = np.uint32((v & np.uint32(0x33333333)) + (v >> np.uint32(2) & np.uint32(0x33333333)))
    v = np.uint32(v + (v >> np.uint32(4)) & np.uint32(0x0F0F0F0F))
    return np.int32(np.uint32(v * np.uint32(0x01010101)) >> np.uint32(24))
