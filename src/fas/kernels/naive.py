"""The readable truth: plain loops over neurons and time steps. Slow; every other backend is tested against it.

All arithmetic is that of tensors of the dtype of the input (float32 stays float32), one operation after the other,
so that a fast twin can be held to it to the last bit.
"""

from __future__ import annotations

import math
from itertools import pairwise, product

import torch
from torch import Tensor

from fas.kernels.interface.code import Code, State

name = "naive"
# Share of channels that spike up to which rows of the weight are selected one by one: always.
SPARSE: float = 1.0
# Rows of spikes from which ``spike_linear`` is used: always.
TABLE_ROWS: float = 0


def supports(op: str, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    return True, ""


def level(x: Tensor, code: Code, fraction: float = 1.0) -> Tensor:
    """Return F = ⌊(x − μ) · scale · fraction + v_0⌋ of one neuron, all numbers tensors of shape ()."""
    return torch.floor((x - code.offset) * code.scale * fraction + code.v_init)


def window(x: Tensor, code: Code) -> list[int]:
    """Return N_1 … N_T of one neuron for an input that is even over time.

    ``binary`` and ``ternary``: at most one spike a step, which for even input is N_t = clip(F_t, −t, t) within the
    bounds. ``graded``: N_t = clip(F_t). ``table``: what stands there.
    """
    steps, counts = code.timesteps, []
    if code.table is not None:
        count = clip(int(level(x, code)), code.lower, code.upper)
        return list(map(int, code.table.after[:, count - code.lower].tolist()))
    for t in range(1, steps + 1):
        most = steps if code.recursion == "graded" else t
        counts.append(clip(int(level(x, code, t / steps)), max(code.lower, -most), min(code.upper, most)))
    return counts


def lifted(x: Tensor, code: Code, gain: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return tokens [*B, C] times their gains, and these: exponents are tried one after the other."""
    gain = x.new_empty(*x.shape[:-1], 1) if gain is None else gain
    for index in product(*map(range, x.shape[:-1])):
        sizes = [abs(level) if code.lower < 0 else max(level, 0.0) for level in (x[index] * code.scale).tolist()]
        gain[index] = 1.0 if code.adapts is None else _gain(sizes, code.adapts.least, code.upper)
    return x * gain, gain


def _gain(sizes: list[float], least: float, most: int) -> float:
    if any(map(math.isnan, sizes)):
        return math.nan
    mean, peak, e = math.fsum(sizes) / len(sizes), max(sizes), 0
    while e < 16 and mean * 2.0 ** (e + 1) <= least:
        e += 1
    while e > -32 and peak * 2.0**e > most:
        e -= 1
    return 2.0**e


def encode(x: Tensor, code: Code, sent: Tensor | None = None) -> Tensor:
    gain = x.new_empty(*x.shape[:-1], 1)
    return decode(counts(x, code, sent, gain), code, x.dtype, gain)


def counts(x: Tensor, code: Code, sent: Tensor | None = None, gain: Tensor | None = None) -> Tensor:
    x, _ = lifted(x, code, gain)
    out = torch.empty(x.shape, dtype=torch.int16)
    for index, one in _neurons(x, code):
        numbers = window(x[index], one)
        out[index] = numbers[-1]
        _tally(numbers, one, sent, index[-1])
    return out


def decode(counts: Tensor, code: Code, dtype: torch.dtype, gain: Tensor | None = None) -> Tensor:
    values = counts.to(dtype) * code.unit + code.offset
    return values if gain is None else values / gain


def emit(x: Tensor, code: Code, sent: Tensor | None = None) -> Tensor:
    out = x.new_empty(code.timesteps, *x.shape)
    x, gain = lifted(x, code)
    for index, one in _neurons(x, code):
        before, numbers = 0, window(x[index], one)
        for t, count in enumerate(numbers):
            out[(t, *index)] = (count - before) * one.step_unit + one.offset
            before = count
        _tally(numbers, one, sent, index[-1])
    return out / gain


def scan(
    x: Tensor, code: Code, *, first: int, difference: bool, state: State | None = None, sent: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    numbers, sums = _numbers(x, code, first, difference, state, sent)
    out = torch.empty_like(x)
    for n, (before, after) in enumerate(pairwise(numbers)):
        if difference:
            out[n] = after * (code.threshold / (first + n)) + code.offset
        else:
            out[n] = (after - before) * code.threshold + code.offset
    return out, sums, numbers[-1]


def spikes(
    x: Tensor, code: Code, *, first: int, difference: bool, state: State | None = None, sent: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    numbers, sums = _numbers(x, code, first, difference, state, sent)
    return numbers.diff(dim=0).to(torch.int8), sums, numbers[-1]


def _numbers(
    x: Tensor, code: Code, first: int, difference: bool, state: State | None, sent: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return N before the first step and after each, [n + 1, *B, C], and Σ x after the last."""
    numbers, sums = x.new_zeros(len(x) + 1, *x.shape[1:]), x.new_empty(x.shape[1:])
    for index, one in _neurons(x[0], code):
        number = 0 if state is None else int(state[1][index])
        numbers[(0, *index)] = number
        # torch adds up float32 in float64.
        added = torch.zeros((), dtype=torch.float64)
        for n in range(len(x)):
            t, here = first + n, x[(n, *index)]
            added = added + here
            here = here * t if difference else added.to(x.dtype)
            if not difference and state is not None:
                here = here + state[0][index]
            target = int(torch.floor((here - one.offset * t) / one.threshold + one.v_init))
            number = step(number, target, one)
            numbers[(n + 1, *index)] = number
        sums[index] = here
        if sent is not None:
            sent[index[-1]] += int(numbers.movedim(0, -1)[index].diff().abs().sum())
    return numbers, sums


def step(count: int, target: int, code: Code) -> int:
    """Return N_t from N_{t-1} and F_t."""
    if code.recursion == "binary":
        return max(count, min(count + 1, target))
    if code.recursion == "ternary":
        return clip(count + (target > count) - (target < count), code.lower, code.upper)
    return clip(target, code.lower, code.upper)


def pack(x: Tensor, code: Code, gain: Tensor | None = None) -> Tensor:
    x, _ = lifted(x, code, gain)
    out = torch.zeros(code.planes, -(-code.timesteps // 8), *x.shape, dtype=torch.uint8)
    for index, one in _neurons(x, code):
        before = 0
        for t, count in enumerate(window(x[index], one), start=1):
            if count != before:
                out[(int(count < before), (t - 1) // 8, *index)] |= 1 << (t - 1) % 8
            before = count
    return out


def unpack(bits: Tensor, code: Code, sent: Tensor | None = None) -> Tensor:
    out = torch.zeros(bits.shape[2:], dtype=torch.int16)
    for plane, sign in zip(bits, (1, -1), strict=False):
        for bit in range(code.timesteps):
            weight = 1
            if code.table is not None:
                assert code.table.worth is not None
                weight = code.table.worth[bit]
            fired = (plane[bit // 8] >> bit % 8 & 1).to(torch.int16)
            out += sign * weight * fired
            if sent is not None:
                sent += fired.reshape(-1, len(sent)).sum(0)
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = x.new_zeros(x.numel() // x.shape[-1], len(weight))
    for row, source in zip(out, x.view(-1, x.shape[-1]), strict=True):
        for o in range(len(weight)):
            row[o] = sum(source[i] * weight[o, i] for i in range(len(source)))
    out = out.view(*x.shape[:-1], len(weight))
    return out if bias is None else out + bias


def event_linear(counts: Tensor, unit: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out = bias.clone()
    for c in range(len(counts)):
        if counts[c]:
            out += counts[c] * unit[c] * weight[c]
    return out


def spike_linear(
    spikes: Tensor, threshold: Tensor, weight: Tensor, bias: Tensor, *, first: int, difference: bool
) -> Tensor:
    rows = spikes.flatten(1, -2) if spikes.ndim > 2 else spikes.unsqueeze(1)
    out = threshold.new_empty(*rows.shape[:-1], len(weight))
    for n in range(len(rows)):
        for b in range(rows.shape[1]):
            sent = rows[: n + 1, b].sum(0) / (first + n) if difference else rows[n, b]
            for o in range(len(weight)):
                out[n, b, o] = bias[o] + sum(sent[c] * threshold[c] * weight[o, c] for c in range(len(threshold)))
    return out.view(*spikes.shape[:-1], len(weight))


def integer_linear(
    counts: Tensor, weight: Tensor, scale: Tensor, rest: Tensor, gain: Tensor | None, bias: Tensor, largest: int
) -> Tensor:
    out = torch.zeros(len(counts), len(weight), dtype=torch.int64)
    for r in range(len(counts)):
        for o in range(len(weight)):
            out[r, o] = sum(int(counts[r, i]) * int(weight[o, i]) for i in range(counts.shape[1]))
    sums = out.to(scale.dtype) * scale + rest
    return (sums if gain is None else sums / gain.view(-1, 1)) + bias


def _tally(numbers: list[int], code: Code, sent: Tensor | None, channel: int) -> None:
    """Add the spikes that lead to N_1 … N_T: as many as a step changes the count by, or one for any digit."""
    if sent is not None:
        changes = [abs(after - before) for before, after in pairwise([0, *numbers])]
        sent[channel] += sum(map(bool, changes)) if code.table is not None else sum(changes)


def clip(value: int, lower: int, upper: int) -> int:
    """Return the value or the bound that it exceeds."""
    return max(lower, min(upper, value))


def _neurons(x: Tensor, code: Code) -> list[tuple[tuple[int, ...], Code]]:
    """Return the index of every neuron of [*B, C] with the parameters of its channel."""
    channels = [code.map(lambda p, c=c: p if p.ndim == 0 else p[c]) for c in range(x.shape[-1])]  # type: ignore[misc]
    return [(tuple(map(int, index)), channels[int(index[-1])]) for index in torch.ones(x.shape).nonzero()]
