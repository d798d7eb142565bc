"""Neurons in Triton: one pass over the activation, a scan in registers.

A program has a tile of rows and channels: it reads a channel's parameters once and sums its rows' spikes first.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

ROWS, CHANNELS = 16, 64
BINARY, TERNARY = tl.constexpr(0), tl.constexpr(1)


@triton.jit
def encode(
    x: Any, out: Any, scale: Any, unit: Any, v_init: Any, offset: Any, sent: Any, change: Any, spikes: Any,
    rows: Any, channels: Any, lower: Any, upper: Any,
    WHOLE: tl.constexpr, TALLY: tl.constexpr, TABLE: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    """Write clip(⌊(x − μ) · scale + v_0⌋) · unit + μ, or the count itself if WHOLE; with a TABLE, what it becomes."""
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    known, inside = c < channels, (r < rows) & (c < channels)
    i = r * channels + c
    mu = tl.load(offset + c, known, other=0.0)
    reached = tl.floor(
        (tl.load(x + i, inside, other=0.0) - mu) * tl.load(scale + c, known, other=0.0)
        + tl.load(v_init + c, known, other=0.0)
    )
    count = tl.minimum(tl.maximum(reached, lower), upper)
    if TABLE:
        # What is not a number has no place there; any one will do.
        place = tl.minimum(tl.maximum((count - lower).to(tl.int32), 0), upper - lower)
        count += tl.load(change + place, inside, other=0).to(tl.float32)
    if TALLY:
        fired = tl.where(inside, tl.abs(count), 0.0).to(tl.int32)
        if TABLE:
            fired = tl.load(spikes + place, inside, other=0).to(tl.int32)
        total = tl.sum(fired, 0)
        own = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        tl.atomic_add(sent + own, total.to(tl.int64), own < channels)
    if WHOLE:
        tl.store(out + i, count.to(tl.int16), inside)
    else:
        tl.store(out + i, count * tl.load(unit + c, known, other=0.0) + mu, inside)


@triton.jit
def scan(
    x: Any, out: Any, threshold: Any, v_init: Any, offset: Any, total: Any, count: Any, sent: Any,
    rows: Any, channels: Any, lower: Any, upper: Any, first: Any, steps: Any,
    RECURSION: tl.constexpr, DIFFERENCE: tl.constexpr, TALLY: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    """Neurons over steps of uneven input; Σ x and N are read from and written to ``total`` and ``count``."""
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    known, inside = c < channels, (r < rows) & (c < channels)
    i = r * channels + c
    size = rows.to(tl.int64) * channels
    theta = tl.load(threshold + c, known, other=1.0)
    v, mu = tl.load(v_init + c, known, other=0.0), tl.load(offset + c, known, other=0.0)
    summed, number = tl.load(total + i, inside, other=0.0), tl.load(count + i, inside, other=0.0)
    fired = number * 0
    for n in range(steps):
        t = (first + n).to(tl.float32)
        here = tl.load(x + n * size + i, inside, other=0.0)
        summed = here * t if DIFFERENCE else summed + here
        target = tl.floor(tl.div_rn(summed - mu * t, theta) + v)
        if RECURSION == BINARY:
            after = tl.maximum(number, tl.minimum(number + 1, target))
        elif RECURSION == TERNARY:
            change = tl.minimum(tl.maximum(target - number, -1.0), 1.0)
            after = tl.minimum(tl.maximum(number + change, lower), upper)
        else:
            after = tl.minimum(tl.maximum(target, lower), upper)
        if TALLY:
            fired += tl.abs(after - number)
        answer = after * tl.div_rn(theta, t) + mu if DIFFERENCE else (after - number) * theta + mu
        tl.store(out + n * size + i, answer, inside)
        number = after
    tl.store(total + i, summed, inside)
    tl.store(count + i, number, inside)
    if TALLY:
        own = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        tl.atomic_add(sent + own, tl.sum(tl.where(inside, fired, 0.0).to(tl.int32), 0).to(tl.int64), own < channels)
