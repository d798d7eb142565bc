"""Products of spikes with many rows in machine code, by tables instead of multiplications.

Three channels that spike +1, 0 or −1 have 27 states. For a block of outputs the 27 sums of three rows of the weight
are worked out once; every row of spikes then adds the one that its state names. Each third of an addition stands for
a multiply-add of the dense product, whatever the density of the spikes (Arlazarov et al. 1970, "four Russians"). The
order of the additions is fixed, so the answer does not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from fas.kernels.native.calling import at, claimed, native, words

# Channels in a state, states in a word of eight bytes, outputs in a block: 8 · 27 · 64 sums are 55 kB.
CHANNELS, GROUPS, OUTPUTS = 3, 8, 64
CHUNK = CHANNELS * GROUPS
STATES = 3**CHANNELS
SILENT = STATES // 2
# Floats of a vector register, at most; LLVM splits what the processor lacks.
_LANES = 16
_ROW = 4 * OUTPUTS

_I64, _VECTOR = ir.IntType(64), ir.VectorType(ir.FloatType(), _LANES)


def _address(builder: Any, start: Any, byte: int) -> Any:
    return builder.inttoptr(builder.add(start, ir.Constant(_I64, byte)), _VECTOR.as_pointer())


def _load(builder: Any, start: Any, byte: int) -> Any:
    loaded = builder.load(_address(builder, start, byte))
    loaded.align = 4
    return loaded


def _store(builder: Any, value: Any, start: Any, byte: int) -> None:
    builder.store(value, _address(builder, start, byte)).align = 4


def _fill(typing: Any, weights: Any, table: Any) -> Any:
    """Write the sums of all states of three rows of weights."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = arguments
        for byte in range(0, _ROW, 4 * _LANES):
            rows = [_load(builder, source, channel * _ROW + byte) for channel in range(CHANNELS)]
            sums = [ir.Constant(_VECTOR, [0.0] * _LANES)]
            # State Σ (s_c + 1) 3^c: the last channel is the slowest.
            for row in reversed(rows):
                sums = [new for old in sums for new in (builder.fsub(old, row), old, builder.fadd(old, row))]
            for state, value in enumerate(sums):
                _store(builder, value, target, state * _ROW + byte)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _look_up(typing: Any, total: Any, table: Any, states: Any) -> Any:
    """Add to a row of the answer the sums that eight states name."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        answer, start, place = arguments
        word = builder.load(builder.inttoptr(place, _I64.as_pointer()))
        entries = []
        for group in range(GROUPS):
            state = builder.and_(builder.lshr(word, ir.Constant(_I64, 8 * group)), ir.Constant(_I64, 255))
            entries.append(builder.add(start, builder.mul(state, ir.Constant(_I64, _ROW))))
        for byte in range(0, _ROW, 4 * _LANES):
            parts = [_load(builder, entry, n * STATES * _ROW + byte) for n, entry in enumerate(entries)]
            while len(parts) > 1:
                parts = [builder.fadd(parts[n], parts[n + 1]) for n in range(0, len(parts), 2)]
            _store(builder, builder.fadd(_load(builder, answer, byte), parts[0]), answer, byte)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


fill: Any = intrinsic(_fill)
look_up: Any = intrinsic(_look_up)


@njit(inline="never")
def _scaled(out: Any, row: Any, factor: Any) -> None:
    for j in range(len(row)):
        out[j] = row[j] * factor


@native
def states(work: Any) -> None:
    """Write the state of every three channels: spikes [rows, inner] to [chunks, rows, groups]."""
    w = words(work, 6)
    rows, inner = w[1], w[2]
    chunks = (inner + CHUNK - 1) // CHUNK
    spikes = carray(at(w[4]), (rows, inner), np.int8)
    out = carray(at(w[5]), (chunks, rows, GROUPS), np.uint8)
    for k in claimed(work, chunks, 1):
        for r in range(rows):
            for group in range(GROUPS):
                state, weight = SILENT, 1
                for c in range(k * CHUNK + group * CHANNELS, min(inner, k * CHUNK + (group + 1) * CHANNELS)):
                    state += weight * spikes[r, c]
                    weight *= 3
                out[k, r, group] = state


@native
def product(work: Any) -> None:
    """Write out[t, b] = bias + Σ_c s[t, b, c] θ_c W_c, or with (Σ_{i≤t} s[i, b, c])/t in the place of s[t, b, c]."""
    w = words(work, 14)
    rows, inner, outer, across = w[1], w[2], w[3], w[4]
    theta, bias = carray(at(w[7]), inner, np.float32), carray(at(w[8]), outer, np.float32)
    across_weight = carray(at(w[6]), (inner, outer), np.float32)
    along_weight = carray(at(w[6]), (outer, inner), np.float32)
    out = carray(at(w[9]), (rows, outer), np.float32)
    steps, first, difference = w[10], w[11], w[12]
    chunks, samples = (inner + CHUNK - 1) // CHUNK, rows // steps
    # Aligned, as a load that crosses a line of the cache counts twice. Views keep the arrays alive: addresses do not.
    sums, entries = np.empty((rows + 1) * OUTPUTS, np.float32), np.empty((GROUPS * STATES + 1) * OUTPUTS, np.float32)
    start, begun = (-sums.ctypes.data & 63) // 4, (-entries.ctypes.data & 63) // 4
    total = sums[start : start + rows * OUTPUTS].reshape(rows, OUTPUTS)
    table = entries[begun : begun + GROUPS * STATES * OUTPUTS]
    local = np.zeros((CHUNK, OUTPUTS), np.float32)
    for i in claimed(work, (outer + OUTPUTS - 1) // OUTPUTS, 1):
        low, high = i * OUTPUTS, min(outer, (i + 1) * OUTPUTS)
        for r in range(rows):
            for j in range(OUTPUTS):
                total[r, j] = 0
        for k in range(chunks):
            begin, size = k * CHUNK, min(CHUNK, inner - k * CHUNK)
            if across:
                for c in range(size):
                    _scaled(local[c, : high - low], across_weight[begin + c, low:high], theta[begin + c])
            else:
                for j in range(high - low):
                    for c in range(size):
                        local[c, j] = along_weight[low + j, begin + c] * theta[begin + c]
            for c in range(size, CHUNK):
                for j in range(OUTPUTS):
                    local[c, j] = 0
            for group in range(GROUPS):
                fill(local.ctypes.data + group * CHANNELS * _ROW, table.ctypes.data + group * STATES * _ROW)
            for r in range(rows):
                look_up(total.ctypes.data + r * _ROW, table.ctypes.data, w[5] + (k * rows + r) * GROUPS)
        for n in range(steps):
            for b in range(samples):
                r = n * samples + b
                if difference:
                    if n:
                        for j in range(OUTPUTS):
                            total[r, j] += total[r - samples, j]
                    t = np.float32(first + n)
                    for j in range(high - low):
                        out[r, low + j] = total[r, j] / t + bias[low + j]
                else:
                    for j in range(high - low):
                        out[r, low + j] = total[r, j] + bias[low + j]
