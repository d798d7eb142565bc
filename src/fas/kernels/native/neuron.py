"""Neurons in machine code: each kernel reads the activation once and writes its answer once.

Arithmetic is that of the torch kernels, operation by operation and without contraction, so that answers are equal
to the last bit. Loops over channels have at most two arrays to write, which is what LLVM can still prove apart; spikes
are added up by a second loop over a row, which lies in the first cache by then.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit

from fas.kernels.native.calling import at, claimed, native, real_word, words
from fas.kernels.native.gain import gain_of
from fas.kernels.native.tally import flush, ones


@njit(inline="always")
def _reached(x: Any, offset: Any, scale: Any, fraction: Any, v_init: Any) -> Any:
    return np.floor((x - offset) * scale * fraction + v_init)


@njit(inline="always")
def _clipped(value: Any, lower: Any, upper: Any) -> Any:
    return min(max(value, lower), upper)


def neuron_kernel(name: str, real: Any) -> Any:
    """Return a kernel for np.float32 or np.float64."""
    answer = np.int16 if name == "counts" else real
    weighs = name == "encode"

    def code(work: Any) -> None:
        w = words(work, 16)
        rows, channels, piece, lower, upper = w[1], w[2], w[3], real(w[10]), real(w[11])
        x, out = carray(at(w[4]), (rows, channels), real), carray(at(w[5]), (rows, channels), answer)
        scale, unit = carray(at(w[6]), channels, real), carray(at(w[7]), channels, real)
        v_init, offset = carray(at(w[8]), channels, real), carray(at(w[9]), channels, real)
        sent, most, least = w[12], w[13], real_word(work, 14)
        gains = carray(at(w[15]), rows * (w[15] != 0), real)
        local, done = np.zeros(channels * (sent != 0), np.int32), 0
        for r in claimed(work, rows, piece):
            gain = real(gain_of(x[r], scale, least, w[10], w[11]))
            back = real(1) / gain
            if len(gains):
                gains[r] = gain
            for c in range(channels):
                n = np.floor((x[r, c] * gain - offset[c]) * scale[c] + v_init[c])
                n = _clipped(n, lower, upper)
                out[r, c] = (n * unit[c] + offset[c]) * back if weighs else np.int32(n)
            if sent:
                for c in range(channels):
                    n = np.floor((x[r, c] * gain - offset[c]) * scale[c] + v_init[c])
                    local[c] += np.int32(abs(_clipped(n, lower, upper)))
                done += 1
                if done == most:
                    flush(sent, local, channels)
                    done = 0
        if sent:
            flush(sent, local, channels)

    def pack(work: Any) -> None:
        w = words(work, 13)
        rows, channels, piece = w[1], w[2], w[3]
        lower, upper, steps = real(w[10]), real(w[11]), w[12]
        planes, octets = 2 if w[10] < 0 else 1, (steps + 7) // 8
        x = carray(at(w[4]), (rows, channels), real)
        out = carray(at(w[5]), (planes, octets, rows, channels), np.uint8)
        scale = carray(at(w[6]), channels, real)
        v_init, offset = carray(at(w[8]), channels, real), carray(at(w[9]), channels, real)
        for r in claimed(work, rows, piece):
            for plane in range(planes):
                sign = real(1 - 2 * plane)
                for octet in range(octets):
                    bits = out[plane, octet, r]
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
        w = words(work, 11)
        rows, channels, piece = w[1], w[2], w[3]
        gains = carray(at(w[10]), rows * (w[10] != 0), real)
        count, out = carray(at(w[4]), (rows, channels), np.int16), carray(at(w[5]), (rows, channels), real)
        unit, offset = carray(at(w[7]), channels, real), carray(at(w[9]), channels, real)
        for r in claimed(work, rows, piece):
            back = real(1) / gains[r] if len(gains) else real(1)
            for c in range(channels):
                out[r, c] = (real(count[r, c]) * unit[c] + offset[c]) * back

    return native({"pack": pack, "decode": decode}.get(name, code))


@native
def unpack(work: Any) -> None:
    """Put packed spikes together as counts."""
    w = words(work, 10)
    rows, channels, piece, planes, octets, sent, most = w[1], w[2], w[3], w[6], w[7], w[8], w[9]
    local, done = np.zeros(channels * (sent != 0), np.int32), 0
    bits = carray(at(w[4]), (planes, octets, rows, channels), np.uint8)
    out = carray(at(w[5]), (rows, channels), np.int16)
    for r in claimed(work, rows, piece):
        for c in range(channels):
            out[r, c] = 0
        for plane in range(planes):
            sign = np.int16(1 - 2 * plane)
            for octet in range(octets):
                source = bits[plane, octet, r]
                if sent:
                    for c in range(channels):
                        local[c] += ones(source[c])
                for c in range(channels):
                    # Ones of a byte, by halves.
                    b = source[c]
                    b = np.uint8(b - np.uint8(b >> 1 & 0x55))
                    b = np.uint8((b & 0x33) + (b >> 2 & 0x33))
                    out[r, c] = np.int16(out[r, c] + sign * np.int16(b + (b >> 4) & 0x0F))
        done += 1
        if sent and done == most:
            flush(sent, local, channels)
            done = 0
    if sent:
        flush(sent, local, channels)
