"""Kernels in plain torch: any device, any dtype, traceable by ``torch.compile``."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from fas.kernels.interface.code import Code, State

name = "torch"
# Bits of a byte that are set, by the byte.
_ONES = torch.tensor([value.bit_count() for value in range(256)], dtype=torch.uint8)
# Share of channels that spike below which selecting rows of the weight, which copies them, beats reading all.
SPARSE: float = 0.2
# Rows of spikes from which ``spike_linear`` beats making numbers of them first: it does the very same.
TABLE_ROWS: float = math.inf


def supports(op: str, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    return True, ""


def lifted(x: Tensor, code: Code, gain: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return tokens [*B, C] times their gains, and these [*B, 1], also in ``gain``; None where all are 1."""
    if code.adapts is None:
        return x, None
    found = code.adapts.gain(x * code.scale, code.upper)
    return x * found, found if gain is None else gain.copy_(found)


def encode(x: Tensor, code: Code, sent: Tensor | None = None) -> Tensor:
    x, gain = lifted(x, code)
    found = _counts(x, code)
    _tally_counts(found, code, sent)
    return decode(found, code, x.dtype, gain)


def counts(x: Tensor, code: Code, sent: Tensor | None = None, gain: Tensor | None = None) -> Tensor:
    found = _counts(lifted(x, code, gain)[0], code)
    _tally_counts(found, code, sent)
    return found.to(torch.int16)


def decode(counts: Tensor, code: Code, dtype: torch.dtype, gain: Tensor | None = None) -> Tensor:
    return weighed(counts.to(dtype), code.unit, code, gain)


def weighed(counts: Tensor, unit: Tensor, code: Code, gain: Tensor | None) -> Tensor:
    """Return n · unit + μ, divided by the gains of tokens where there are any."""
    values = counts * unit + code.offset
    return values if gain is None else values / gain


def window(x: Tensor, code: Code, t: int) -> Tensor:
    """Return N_t for even input x [*B, C]; at t = T by the very arithmetic of ``counts``."""
    if code.table is not None:
        return code.table.of(code.table.after[t - 1], _reached(x, code))
    reached = torch.floor((x - code.offset) * code.scale * (t / code.timesteps) + code.v_init)
    most = code.timesteps if code.recursion == "graded" else t
    return reached.clamp(max(code.lower, -most), min(code.upper, most))


def emit(x: Tensor, code: Code, sent: Tensor | None = None) -> Tensor:
    out = x.new_empty(code.timesteps, *x.shape)
    (x, gain), before = lifted(x, code), torch.zeros_like(x)
    for t in range(code.timesteps):
        after = window(x, code, t + 1)
        fired = after - before
        tally(fired.sign() if code.table is not None else fired, sent)
        out[t] = weighed(fired, code.step_unit, code, gain)
        before = after
    return out


def scan(
    x: Tensor, code: Code, *, first: int, difference: bool, state: State | None = None, sent: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    after, total = _numbers(x, code, first, difference, state)
    fired = None if difference and sent is None else after.diff(dim=0)
    if fired is not None:
        tally(fired, sent)
    if difference:
        out = after[1:] * (code.threshold / _clock(x, first)) + code.offset
    else:
        assert fired is not None
        out = fired * code.threshold + code.offset
    return out, total, after[-1]


def spikes(
    x: Tensor, code: Code, *, first: int, difference: bool, state: State | None = None, sent: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    after, total = _numbers(x, code, first, difference, state)
    fired = after.diff(dim=0)
    tally(fired, sent)
    return fired.to(torch.int8), total, after[-1]


def _clock(x: Tensor, first: int) -> Tensor:
    clock = torch.arange(first, first + len(x), device=x.device, dtype=x.dtype)
    return clock.view(-1, *[1] * (x.ndim - 1))


def _numbers(x: Tensor, code: Code, first: int, difference: bool, state: State | None) -> tuple[Tensor, Tensor]:
    """Return N before the first step and after each, [n + 1, *B, C], and Σ x after the last."""
    clock = _clock(x, first)
    added = x * clock if difference else x.cumsum(0)
    if state is not None and not difference:
        added = added + state[0]
    reached = ((added - code.offset * clock) / code.threshold + code.v_init).floor()
    number = torch.zeros_like(reached[0]) if state is None else state[1]
    numbers = [number]
    for target in reached:
        if code.recursion == "binary":
            number = torch.maximum(number, torch.minimum(number + 1, target))
        elif code.recursion == "ternary":
            number = (number + torch.sign(target - number)).clamp(code.lower, code.upper)
        else:
            number = target.clamp(code.lower, code.upper)
        numbers.append(number)
    return torch.stack(numbers), added[-1]


def pack(x: Tensor, code: Code, gain: Tensor | None = None) -> Tensor:
    x, _ = lifted(x, code, gain)
    out = torch.zeros(code.planes, -(-code.timesteps // 8), *x.shape, dtype=torch.uint8, device=x.device)
    before = torch.zeros_like(x)
    for t in range(1, code.timesteps + 1):
        after = window(x, code, t)
        for plane, fired in zip(out, (after > before, after < before), strict=False):
            plane[(t - 1) // 8] |= fired.to(torch.uint8) << (t - 1) % 8
        before = after
    return out


def unpack(bits: Tensor, code: Code, sent: Tensor | None = None) -> Tensor:
    if sent is not None:
        tally(_ONES.to(bits.device)[bits.int()], sent)
    if code.table is not None:
        assert code.table.worth is not None
        sizes = torch.zeros_like(bits[:, 0], dtype=torch.int16)
        for t, worth in enumerate(code.table.worth):
            sizes += (bits[:, t // 8] >> t % 8 & 1).to(torch.int16) * worth
    else:
        sizes = _ONES.to(bits.device)[bits.int()].sum(1, dtype=torch.int16)
    return sizes[0] if len(sizes) == 1 else sizes[0] - sizes[1]


def tally(fired: Tensor, sent: Tensor | None) -> None:
    """Add |s| [*B, C] to the spikes by channel [C], int64, if they are asked for."""
    if sent is not None:
        # Whole numbers below 2^53: exact.
        sent += fired.abs().reshape(-1, len(sent)).sum(0, dtype=torch.float64).long()


def _tally_counts(counts: Tensor, code: Code, sent: Tensor | None) -> None:
    if sent is None:
        return
    if code.table is not None:
        counts = code.table.of(code.table.spikes, counts)
    tally(counts, sent)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.linear(x, weight, bias)


def event_linear(counts: Tensor, unit: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    chosen = counts.nonzero().view(-1)
    return torch.addmv(bias, weight[chosen].T, counts[chosen] * unit[chosen])


def spike_linear(
    spikes: Tensor, threshold: Tensor, weight: Tensor, bias: Tensor, *, first: int, difference: bool
) -> Tensor:
    counts = spikes.cumsum(0, dtype=threshold.dtype) if difference else spikes.to(threshold.dtype)
    scale = threshold / _clock(counts, first) if difference else threshold
    return functional.linear(counts * scale, weight, bias)


def integer_linear(
    counts: Tensor, weight: Tensor, scale: Tensor, rest: Tensor, gain: Tensor | None, bias: Tensor, largest: int
) -> Tensor:
    rows, inner = counts.shape
    if counts.is_cpu and rows and largest < 2**13 and 128 * largest * inner < 2**31 and torch.cpu._is_vnni_supported():
        # Without VNNI oneDNN adds pairs of products in 16 bits, which can overflow. Counts of more than 8 bits are two
        # rows of 7 bits each, which takes half of the time of a product of floats.
        low = (counts + 64 & 127) - 64 if largest > 127 else counts
        parts = torch.cat([low, counts - low >> 7]) if largest > 127 else counts
        product = torch._int_mm(parts.to(torch.int8), weight.T)
        sums = (product[:rows] + 128 * product[rows:] if largest > 127 else product).to(scale.dtype) * scale + rest
    else:
        # Whole numbers below 2^24 are exact in float32; above, its rounding is far below that of the weights.
        sums = functional.linear(counts.to(scale.dtype), weight.to(scale.dtype)) * scale + rest
    return (sums if gain is None else sums / gain.view(-1, 1)) + bias


def _counts(x: Tensor, code: Code) -> Tensor:
    count = _reached(x, code)
    return count if code.table is None else code.table.settle(count)


def _reached(x: Tensor, code: Code) -> Tensor:
    return torch.floor((x - code.offset) * code.scale + code.v_init).clamp(code.lower, code.upper)
