"""Neurons that send digits after their input, in machine code: every count has a place in tables made beforehand.

Counts are worked out for a row first, in vectors, and looked up after that; a row and the tables of some hundred
counts lie in the first cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit

from fas.kernels.native.calling import at, claim, native, words
from fas.kernels.native.tally import flush


@njit(inline="always")
def _places(place: Any, x: Any, scale: Any, v_init: Any, offset: Any, lower: Any, upper: Any) -> None:
    """Write where the count of every activation of a row stands, from 0; what is not a number stands with 0 spikes."""
    most, silent = np.int32(upper - lower), np.int32(-lower)
    for c in range(len(place)):
        n = np.floor((x[c] - offset[c]) * scale[c] + v_init[c])
        p = np.int32(min(max(n, lower), upper) - lower)
        place[c] = min(p, most) if p >= 0 else silent


def digits_kernel(name: str, real: Any) -> Any:
    """Return a kernel for np.float32 or np.float64.

    Words of all are those of the other neurons up to 11, then: tables of N_T − n or N_T (int16), or of what is sent
    at each step (int16 [T, n], or uint8 [planes, bytes, n]); their number of rows; spikes per count (uint8), where
    they are added up by channel (0: nobody asks), and how many rows a sum of spikes in 32 bits holds.
    """

    def encode(work: Any) -> None:
        w = words(work, 17)
        rows, channels, piece, lower, upper = w[1], w[2], w[3], real(w[10]), real(w[11])
        x, out = carray(at(w[4]), (rows, channels), real), carray(at(w[5]), (rows, channels), real)
        scale, unit = carray(at(w[6]), channels, real), carray(at(w[7]), channels, real)
        v_init, offset = carray(at(w[8]), channels, real), carray(at(w[9]), channels, real)
        size, sent, most = w[11] - w[10] + 1, w[15], w[16]
        change, spikes = carray(at(w[12]), size, np.int16), carray(at(w[14]), size, np.uint8)
        local, done = np.zeros(channels * (sent != 0), np.int32), 0
        place, moved = np.empty(channels, np.int32), np.empty(channels, np.int16)
        pieces = (rows + piece - 1) // piece
        while True:
            i = claim(work)
            if i >= pieces:
                break
            for r in range(i * piece, min(rows, (i + 1) * piece)):
                _places(place, x[r], scale, v_init, offset, lower, upper)
                for c in range(channels):
                    moved[c] = change[np.uint64(place[c])]
                for c in range(channels):
                    n = np.floor((x[r, c] - offset[c]) * scale[c] + v_init[c])
                    out[r, c] = (min(max(n, lower), upper) + real(moved[c])) * unit[c] + offset[c]
                if sent:
                    for c in range(channels):
                        local[c] += np.int32(spikes[np.uint64(place[c])])
                    done += 1
                    if done == most:
                        flush(sent, local, channels)
                        done = 0
        if sent:
            flush(sent, local, channels)

    def counts(work: Any) -> None:
        w = words(work, 17)
        rows, channels, piece, lower, upper = w[1], w[2], w[3], real(w[10]), real(w[11])
        x, out = carray(at(w[4]), (rows, channels), real), carray(at(w[5]), (rows, channels), np.int16)
        scale, v_init, offset = (
            carray(at(w[6]), channels, real),
            carray(at(w[8]), channels, real),
            carray(at(w[9]), channels, real),
        )
        size, sent, most = w[11] - w[10] + 1, w[15], w[16]
        settled, spikes = carray(at(w[12]), size, np.int16), carray(at(w[14]), size, np.uint8)
        local, done = np.zeros(channels * (sent != 0), np.int32), 0
        place = np.empty(channels, np.int32)
        pieces = (rows + piece - 1) // piece
        while True:
            i = claim(work)
            if i >= pieces:
                break
            for r in range(i * piece, min(rows, (i + 1) * piece)):
                _places(place, x[r], scale, v_init, offset, lower, upper)
                for c in range(channels):
                    out[r, c] = settled[np.uint64(place[c])]
                if sent:
                    for c in range(channels):
                        local[c] += np.int32(spikes[np.uint64(place[c])])
                    done += 1
                    if done == most:
                        flush(sent, local, channels)
                        done = 0
        if sent:
            flush(sent, local, channels)

    def emit(work: Any) -> None:
        w = words(work, 17)
        rows, channels, piece, lower, upper = w[1], w[2], w[3], real(w[10]), real(w[11])
        steps, size, sent, most = w[13], w[11] - w[10] + 1, w[15], w[16]
        x, out = carray(at(w[4]), (rows, channels), real), carray(at(w[5]), (steps, rows, channels), real)
        scale, unit = carray(at(w[6]), channels, real), carray(at(w[7]), channels, real)
        v_init, offset = carray(at(w[8]), channels, real), carray(at(w[9]), channels, real)
        emitted, spikes = carray(at(w[12]), (steps, size), np.int16), carray(at(w[14]), size, np.uint8)
        local, done = np.zeros(channels * (sent != 0), np.int32), 0
        place = np.empty(channels, np.int32)
        pieces = (rows + piece - 1) // piece
        while True:
            i = claim(work)
            if i >= pieces:
                break
            for r in range(i * piece, min(rows, (i + 1) * piece)):
                _places(place, x[r], scale, v_init, offset, lower, upper)
                for t in range(steps):
                    for c in range(channels):
                        out[t, r, c] = real(emitted[t, np.uint64(place[c])]) * unit[c] + offset[c]
                if sent:
                    for c in range(channels):
                        local[c] += np.int32(spikes[np.uint64(place[c])])
                    done += 1
                    if done == most:
                        flush(sent, local, channels)
                        done = 0
        if sent:
            flush(sent, local, channels)

    def pack(work: Any) -> None:
        w = words(work, 17)
        rows, channels, piece, lower, upper = w[1], w[2], w[3], real(w[10]), real(w[11])
        planes, size = w[13], w[11] - w[10] + 1
        x, out = carray(at(w[4]), (rows, channels), real), carray(at(w[5]), (planes, rows, channels), np.uint8)
        scale, v_init, offset = (
            carray(at(w[6]), channels, real),
            carray(at(w[8]), channels, real),
            carray(at(w[9]), channels, real),
        )
        bits = carray(at(w[12]), (planes, size), np.uint8)
        place = np.empty(channels, np.int32)
        pieces = (rows + piece - 1) // piece
        while True:
            i = claim(work)
            if i >= pieces:
                break
            for r in range(i * piece, min(rows, (i + 1) * piece)):
                _places(place, x[r], scale, v_init, offset, lower, upper)
                for plane in range(planes):
                    for c in range(channels):
                        out[plane, r, c] = bits[plane, np.uint64(place[c])]

    kernels = {kernel.__name__: kernel for kernel in (encode, counts, emit, pack)}
    return native(kernels[name])


@native
def unpack(work: Any) -> None:
    """Put packed spikes together as counts; what every byte stands for is looked up (int16 [planes, 256])."""
    w = words(work, 10)
    rows, channels, piece, planes, sent, most = w[1], w[2], w[3], w[6], w[8], w[9]
    bits, out = carray(at(w[4]), (planes, rows, channels), np.uint8), carray(at(w[5]), (rows, channels), np.int16)
    worth = carray(at(w[7]), (planes + 1, 256), np.int16)
    local, done = np.zeros(channels * (sent != 0), np.int32), 0
    pieces = (rows + piece - 1) // piece
    while True:
        i = claim(work)
        if i >= pieces:
            break
        for r in range(i * piece, min(rows, (i + 1) * piece)):
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
