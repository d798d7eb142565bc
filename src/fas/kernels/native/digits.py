"""Neurons that send digits after their input, in machine code: every count has a place in tables made beforehand.

Counts of a row are computed first, in vectors, then looked up: a row and tables of a few hundred counts fit in L1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit

from fas.kernels.native.calling import at, claimed, native, real_word, words
from fas.kernels.native.gain import gain_of
from fas.kernels.native.tally import flush


@njit(inline="always")
def _places(place: Any, x: Any, gain: Any, scale: Any, v_init: Any, offset: Any, lower: Any, upper: Any) -> None:
    """Write where the count of every activation of a row stands, from 0; what is not a number stands with 0 spikes."""
    most, silent = np.int32(upper - lower), np.int32(-lower)
    for c in range(len(place)):
        n = np.floor((x[c] * gain - offset[c]) * scale[c] + v_init[c])
        p = np.int32(min(max(n, lower), upper) - lower)
        place[c] = min(p, most) if p >= 0 else silent


def digits_kernel(name: str, real: Any) -> Any:
    """Return a kernel for np.float32 or np.float64: ``encode``, ``counts``, ``emit`` or ``pack``.

    Words are those of the other neurons up to 11, then: tables of N_T − n, of N_T, or of what is sent at each step
    (int16 [planes, n], uint8 for ``pack``); how many planes; spikes per count (uint8), where they are added up by
    channel (0: nobody asks), how many rows a sum of spikes in 32 bits holds, below which mean level a token is lifted
    (float64), and where gains go (0: nobody asks).
    """
    answer = {"counts": np.int16, "pack": np.uint8}.get(name, real)
    entry = np.uint8 if name == "pack" else np.int16
    weighs, adds = answer is real, name == "encode"

    def kernel(work: Any) -> None:
        w = words(work, 19)
        rows, channels, piece, lower, upper = w[1], w[2], w[3], real(w[10]), real(w[11])
        planes, size, sent, most, least = w[13], w[11] - w[10] + 1, w[15], w[16], real_word(work, 17)
        x, out = carray(at(w[4]), (rows, channels), real), carray(at(w[5]), (planes, rows, channels), answer)
        scale, unit = carray(at(w[6]), channels, real), carray(at(w[7]), channels, real)
        v_init, offset = carray(at(w[8]), channels, real), carray(at(w[9]), channels, real)
        entries, spikes = carray(at(w[12]), (planes, size), entry), carray(at(w[14]), size, np.uint8)
        gains = carray(at(w[18]), rows * (w[18] != 0), real)
        local, done = np.zeros(channels * (sent != 0), np.int32), 0
        place, found = np.empty(channels, np.int32), np.empty(channels, entry)
        for r in claimed(work, rows, piece):
            gain = real(gain_of(x[r], scale, least, w[10], w[11]))
            back = real(1) / gain
            if len(gains):
                gains[r] = gain
            _places(place, x[r], gain, scale, v_init, offset, lower, upper)
            for plane in range(planes):
                for c in range(channels):
                    found[c] = entries[plane, np.uint64(place[c])]
                for c in range(channels):
                    if not weighs:
                        out[plane, r, c] = found[c]
                        continue
                    n = real(found[c])
                    if adds:
                        # What is not a number stays so.
                        level = np.floor((x[r, c] * gain - offset[c]) * scale[c] + v_init[c])
                        n += min(max(level, lower), upper)
                    out[plane, r, c] = (n * unit[c] + offset[c]) * back
            if sent:
                for c in range(channels):
                    local[c] += np.int32(spikes[np.uint64(place[c])])
                done += 1
                if done == most:
                    flush(sent, local, channels)
                    done = 0
        if sent:
            flush(sent, local, channels)

    return native(kernel)


@native
def unpack(work: Any) -> None:
    """Put packed spikes together as counts; what every byte stands for is looked up (int16 [planes, 256])."""
    w = words(work, 10)
    rows, channels, piece, planes, sent, most = w[1], w[2], w[3], w[6], w[8], w[9]
    bits, out = carray(at(w[4]), (planes, rows, channels), np.uint8), carray(at(w[5]), (rows, channels), np.int16)
    worth = carray(at(w[7]), (planes + 1, 256), np.int16)
    local, done = np.zeros(channels * (sent != 0), np.int32), 0
    for r in claimed(work, rows, piece):
        for c in range(channels):
            out[r, c] = 0
        for plane in range(planes):
            for c in range(channels):
                out[r, c] = np.int16(out[r, c] + worth[plane, np.uint64(bits[plane, r, c])])
            if sent:
                for c in range(channels):
                    local[c] += np.int32(worth[planes, np.uint64(bits[plane, r, c])])
        done += 1
        if sent and done == most:
            flush(sent, local, channels)
            done = 0
    if sent:
        flush(sent, local, channels)
