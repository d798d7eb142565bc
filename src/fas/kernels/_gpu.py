"""Neurons in Triton: one pass over the activation, a scan in registers."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

BLOCK = 1024
BINARY, TERNARY = tl.constexpr(0), tl.constexpr(1)


@triton.jit
def encode(
    x: Any,
    out: Any,
    scale: Any,
    unit: Any,
    v_init: Any,
    offset: Any,
    size: Any,
    channels: Any,
    lower: Any,
    upper: Any,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write clip(⌊(x − μ) · scale + v_0⌋) · unit + μ, or the count itself if WHOLE."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    c = i % channels
    mu = tl.load(offset + c, inside, other=0.0)
    reached = tl.floor(
        (tl.load(x + i, inside, other=0.0) - mu) * tl.load(scale + c, inside, other=0.0)
        + tl.load(v_init + c, inside, other=0.0)
    )
    count = tl.minimum(tl.maximum(reached, lower), upper)
    if WHOLE:
        tl.store(out + i, count.to(tl.int16), inside)
    else:
        tl.store(out + i, count * tl.load(unit + c, inside, other=0.0) + mu, inside)


@triton.jit
def scan(
    x: Any,
    out: Any,
    threshold: Any,
    v_init: Any,
    offset: Any,
    total: Any,
    count: Any,
    size: Any,
    channels: Any,
    lower: Any,
    upper: Any,
    first: Any,
    steps: Any,
    RECURSION: tl.constexpr,
    DIFFERENCE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Neurons over steps of uneven input; Σ x and N are read from and written to ``total`` and ``count``."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    c = i % channels
    theta = tl.load(threshold + c, inside, other=1.0)
    v, mu = tl.load(v_init + c, inside, other=0.0), tl.load(offset + c, inside, other=0.0)
    summed, number = tl.load(total + i, inside, other=0.0), tl.load(count + i, inside, other=0.0)
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
        answer = after * tl.div_rn(theta, t) + mu if DIFFERENCE else (after - number) * theta + mu
        tl.store(out + n * size + i, answer, inside)
        number = after
    tl.store(total + i, summed, inside)
    tl.store(count + i, number, inside)
