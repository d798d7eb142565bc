"""Neurons in machine code: each kernel reads the activation once and writes its answer once.

Arithmetic is that of the torch kernels, operation by operation and without contraction, so that answers are equal
to the last bit. Loops over channels have at most two arrays to write, which is what LLVM can still prove apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit

from fas.kernels._native import at, claim, native, words

BINARY, TERNARY, GRADED, DIGITS = range(4)
STRETCH = 512


@njit(inline="always")
def _reached(x: Any, offset: Any, scale: Any, fraction: Any, v_init: Any) -> Any:
    return np.floor((x - offset) * scale * fraction + v_init)


@njit(inline="always")
def _clipped(value: Any, lower: Any, upper: Any) -> Any:
    return min(max(value, lower), upper)


@njit(inline="always")
def _following(number: Any, target: Any, lower: Any, upper: Any, one: Any, recursion: Any) -> Any:
    """Return N_t from N_{t-1} and F_t; ``one`` is 1 in their type."""
    if recursion == BINARY:
        return max(number, min(number + one, target))
    if recursion == TERNARY:
        return _clipped(number + _clipped(target - number, -one, one), lower, upper)
    return _clipped(target, lower, upper)


def neuron_kernel(name: str, real: Any) -> Any:
    """Return a kernel for np.float32 or np.float64; ``spikes`` is ``scan`` with spikes for an answer, int8."""
    whole = name == "spikes"
    answered = np.int8 if whole else real

    def encode(work: Any) -> None:
        w = words(work, 12)
        rows, channels, piece = w[1], w[2], w[3]
        x, out = carray(at(w[4]), (rows, channels), real), carray(at(w[5]), (rows, channels), real)
        scale, unit = carray(at(w[6]), channels, real), carray(at(w[7]), channels, real)
        v_init, offset = carray(at(w[8]), channels, real), carray(at(w[9]), channels, real)
        lower, upper = real(w[10]), real(w[11])
        pieces = (rows + piece - 1) // piece
        while True:
            i = claim(work)
            if i >= pieces:
                break
            for r in range(i * piece, min(rows, (i + 1) * piece)):
                for c in range(channels):
                    n = np.floor((x[r, c] - offset[c]) * scale[c] + v_init[c])
                    out[r, c] = _clipped(n, lower, upper) * unit[c] + offset[c]

    def counts(work: Any) -> None:
        w = words(work, 12)
        rows, channels, piece = w[1], w[2], w[3]
        x, out = carray(at(w[4]), (rows, channels), real), carray(at(w[5]), (rows, channels), np.int16)
        scale = carray(at(w[6]), channels, real)
        v_init, offset = carray(at(w[8]), channels, real), carray(at(w[9]), channels, real)
        lower, upper = real(w[10]), real(w[11])
        pieces = (rows + piece - 1) // piece
        while True:
            i = claim(work)
            if i >= pieces:
                break
            for r in range(i * piece, min(rows, (i + 1) * piece)):
                for c in range(channels):
                    n = np.floor((x[r, c] - offset[c]) * scale[c] + v_init[c])
                    out[r, c] = np.int16(np.int32(_clipped(n, lower, upper)))

    def emit(work: Any) -> None:
        w = words(work, 14)
        rows, channels, piece = w[1], w[2], w[3]
        lower, upper, steps, recursion = real(w[10]), real(w[11]), w[12], w[13]
        x, out = carray(at(w[4]), (rows, channels), real), carray(at(w[5]), (steps, rows, channels), real)
        scale, unit = carray(at(w[6]), channels, real), carray(at(w[7]), channels, real)
        v_init, offset = carray(at(w[8]), channels, real), carray(at(w[9]), channels, real)
        one = real(1)
        pieces = (rows + piece - 1) // piece
        while True:
            i = claim(work)
            if i >= pieces:
                break
            for r in range(i * piece, min(rows, (i + 1) * piece)):
                for t in range(1, steps + 1):
                    if recursion == DIGITS:
                        shift = steps - t
                        for c in range(channels):
                            n = np.int32(_clipped(_reached(x[r, c], offset[c], scale[c], one, v_init[c]), lower, upper))
                            digit = real((abs(n) >> shift & 1) << shift)
                            out[t - 1, r, c] = (digit if n >= 0 else -digit) * unit[c] + offset[c]
                        continue
                    most = steps if recursion == GRADED else t
                    before = steps if recursion == GRADED else t - 1
                    if t == 1:
                        before = 0
                    low, high = max(lower, real(-most)), min(upper, real(most))
                    low_before, high_before = max(lower, real(-before)), min(upper, real(before))
                    now, then = real(t / steps), real((t - 1) / steps)
                    for c in range(channels):
                        n = _clipped(_reached(x[r, c], offset[c], scale[c], now, v_init[c]), low, high)
                        b = _clipped(_reached(x[r, c], offset[c], scale[c], then, v_init[c]), low_before, high_before)
                        out[t - 1, r, c] = (n - b) * unit[c] + offset[c]

    def pack(work: Any) -> None:
        w = words(work, 14)
        rows, channels, piece = w[1], w[2], w[3]
        lower, upper, steps, recursion = real(w[10]), real(w[11]), w[12], w[13]
        planes, octets = 2 if w[10] < 0 else 1, (steps + 7) // 8
        x = carray(at(w[4]), (rows, channels), real)
        out = carray(at(w[5]), (planes, octets, rows, channels), np.uint8)
        scale = carray(at(w[6]), channels, real)
        v_init, offset = carray(at(w[8]), channels, real), carray(at(w[9]), channels, real)
        one = real(1)
        pieces = (rows + piece - 1) // piece
        while True:
            i = claim(work)
            if i >= pieces:
                break
            for r in range(i * piece, min(rows, (i + 1) * piece)):
                for plane in range(planes):
                    sign = real(1 - 2 * plane)
                    for octet in range(octets):
                        bits = out[plane, octet, r]
                        if recursion == DIGITS:
                            for c in range(channels):
                                n = sign * _clipped(
                                    _reached(x[r, c], offset[c], scale[c], one, v_init[c]), lower, upper
                                )
                                bits[c] = np.uint8(np.int32(max(n, real(0))) >> 8 * octet & 255)
                            continue
                        for c in range(channels):
                            bits[c] = 0
                        for t in range(8 * octet + 1, min(steps, 8 * octet + 8) + 1):
                            low, high = max(lower, real(-t)), min(upper, real(t))
                            low_before, high_before = max(lower, real(1 - t)), min(upper, real(t - 1))
                            now, then, bit = real(t / steps), real((t - 1) / steps), np.uint8(1 << (t - 1) % 8)
                            for c in range(channels):
                                n = _clipped(_reached(x[r, c], offset[c], scale[c], now, v_init[c]), low, high)
                                b = _clipped(
                                    _reached(x[r, c], offset[c], scale[c], then, v_init[c]), low_before, high_before
                                )
                                bits[c] |= bit if (n - b) * sign > 0 else np.uint8(0)

    def decode(work: Any) -> None:
        w = words(work, 10)
        rows, channels, piece = w[1], w[2], w[3]
        count, out = carray(at(w[4]), (rows, channels), np.int16), carray(at(w[5]), (rows, channels), real)
        unit, offset = carray(at(w[7]), channels, real), carray(at(w[9]), channels, real)
        pieces = (rows + piece - 1) // piece
        while True:
            i = claim(work)
            if i >= pieces:
                break
            for r in range(i * piece, min(rows, (i + 1) * piece)):
                for c in range(channels):
                    out[r, c] = real(count[r, c]) * unit[c] + offset[c]

    def scan(work: Any) -> None:
        w = words(work, 20)
        rows, channels, piece = w[1], w[2], w[3]
        lower, upper, recursion = real(w[10]), real(w[11]), w[13]
        steps, first, difference, carried = w[12], w[14], w[15], w[16]
        x, out = (
            carray(at(w[4]), (steps, rows, channels), real),
            carray(at(w[5]), (steps, rows, channels), answered),
        )
        threshold = carray(at(w[7]), channels, real)
        v_init, offset = carray(at(w[8]), channels, real), carray(at(w[9]), channels, real)
        start, total, count = (
            carray(at(w[17]), (rows, channels), real),
            carray(at(w[18]), (rows, channels), real),
            carray(at(w[19]), (rows, channels), real),
        )
        # A stretch of channels at a time. Its state and its parameters lie in one array at known distances, so
        # that LLVM need not prove them apart.
        one = real(1)
        state, added = np.empty(5 * STRETCH, real), np.empty(STRETCH, np.float64)
        number, theta = state[:STRETCH], state[STRETCH : 2 * STRETCH]
        v, mu, summed = state[2 * STRETCH : 3 * STRETCH], state[3 * STRETCH : 4 * STRETCH], state[4 * STRETCH :]
        pieces = (rows + piece - 1) // piece
        while True:
            i = claim(work)
            if i >= pieces:
                break
            for r in range(i * piece, min(rows, (i + 1) * piece)):
                for begin in range(0, channels, STRETCH):
                    end = min(channels, begin + STRETCH)
                    size = end - begin
                    for c in range(size):
                        number[c] = count[r, begin + c]
                        added[c] = 0.0
                    for c in range(size):
                        theta[c] = threshold[begin + c]
                        v[c] = v_init[begin + c]
                        mu[c] = offset[begin + c]
                    before = start[r, begin:end]
                    for n in range(steps):
                        t = real(first + n)
                        here, answer = x[n, r, begin:end], out[n, r, begin:end]
                        if difference:
                            for c in range(size):
                                summed[c] = here[c] * t
                            for c in range(size):
                                target = np.floor((summed[c] - mu[c] * t) / theta[c] + v[c])
                                after = _following(number[c], target, lower, upper, one, recursion)
                                if whole:
                                    answer[c] = np.int8(np.int32(after - number[c]))
                                else:
                                    answer[c] = after * (theta[c] / t) + mu[c]
                                number[c] = after
                            continue
                        # Σ x up to this step: in float64, as torch adds up.
                        for c in range(size):
                            added[c] += here[c]
                        for c in range(size):
                            summed[c] = added[c]
                        if carried:
                            for c in range(size):
                                summed[c] += before[c]
                        for c in range(size):
                            target = np.floor((summed[c] - mu[c] * t) / theta[c] + v[c])
                            after = _following(number[c], target, lower, upper, one, recursion)
                            if whole:
                                answer[c] = np.int8(np.int32(after - number[c]))
                            else:
                                answer[c] = (after - number[c]) * theta[c] + mu[c]
                            number[c] = after
                    for c in range(size):
                        count[r, begin + c] = number[c]
                    for c in range(size):
                        total[r, begin + c] = summed[c]

    kernels = {kernel.__name__: kernel for kernel in (encode, counts, emit, pack, decode, scan)}
    kernels["spikes"] = scan
    return native(kernels[name])


@native
def unpack(work: Any) -> None:
    """Put packed spikes together as counts."""
    w = words(work, 9)
    rows, channels, piece, planes, octets, digits = w[1], w[2], w[3], w[6], w[7], w[8]
    bits = carray(at(w[4]), (planes, octets, rows, channels), np.uint8)
    out = carray(at(w[5]), (rows, channels), np.int16)
    pieces = (rows + piece - 1) // piece
    while True:
        i = claim(work)
        if i >= pieces:
            break
        for r in range(i * piece, min(rows, (i + 1) * piece)):
            for c in range(channels):
                out[r, c] = 0
            for plane in range(planes):
                sign = np.int16(1 - 2 * plane)
                for octet in range(octets):
                    source = bits[plane, octet, r]
                    if digits:
                        weight = np.int16(sign << 8 * octet)
                        for c in range(channels):
                            out[r, c] = np.int16(out[r, c] + np.int16(source[c]) * weight)
                        continue
                    for c in range(channels):
                        # Ones of a byte, by halves.
                        b = source[c]
                        b = np.uint8(b - np.uint8(b >> 1 & 0x55))
                        b = np.uint8((b & 0x33) + (b >> 2 & 0x33))
                        out[r, c] = np.int16(out[r, c] + sign * np.int16(b + (b >> 4) & 0x0F))
