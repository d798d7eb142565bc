"""Products with few rows in machine code: each weight is read once, which is all that such a product costs."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from fas.kernels.native.calling import at, claimed, native, words

# Lets LLVM add up in the lanes of a vector: the order of a sum is free here, as it is in BLAS.
_SUMS = {"reassoc", "contract", "nsz"}
# Numbers of 16 bits in a vector register, at most; LLVM splits what the processor lacks.
_LANES, _I32 = 32, ir.IntType(32)


@njit(fastmath=_SUMS, inline="never")
def _dot(x: Any, weight: Any) -> Any:
    total = np.float32(0)
    for k in range(len(x)):
        total += x[k] * weight[k]
    return total


def _dot_vectors(typing: Any, count: Any, weight: Any, vectors: Any) -> Any:
    """Return the product of counts (int16) and weights (int8) at two addresses, so many vectors of them."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide, half = ir.VectorType(_I32, _LANES), ir.VectorType(_I32, _LANES // 2)
        even, odd = (ir.Constant(half, list(range(first, _LANES, 2))) for first in (0, 1))
        total = cgutils.alloca_once_value(builder, ir.Constant(half, None))
        with cgutils.for_range(builder, arguments[2]) as loop:
            factors = []
            for start, size in ((arguments[0], 2), (arguments[1], 1)):
                place = builder.add(start, builder.mul(loop.index, ir.Constant(start.type, size * _LANES)))
                vector = ir.VectorType(ir.IntType(8 * size), _LANES)
                factors.append(builder.load(builder.inttoptr(place, vector.as_pointer()), align=size))
            products = builder.mul(*(builder.sext(factor, wide) for factor in factors))
            # Neighbours are added up at once: by that LLVM knows what processors have for numbers of 16 bits.
            pairs = (builder.shuffle_vector(products, products, part) for part in (even, odd))
            builder.store(builder.add(builder.load(total), builder.add(*pairs)), total)
        add_up = f"llvm.vector.reduce.add.v{_LANES // 2}i32"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_I32, [half]), add_up)
        return builder.call(function, [builder.load(total)])

    return types.int32(types.int64, types.int64, types.int64), generate


dot_vectors: Any = intrinsic(_dot_vectors)


@njit(inline="never")
def _dot_integer(count: Any, weight: Any) -> Any:
    vectors = len(count) // _LANES
    total = dot_vectors(count.ctypes.data, weight.ctypes.data, vectors)
    for k in range(vectors * _LANES, len(count)):
        total = np.int32(total + np.int32(count[k]) * np.int32(weight[k]))
    return total


@njit(fastmath=_SUMS, inline="never")
def _add_rows(out: Any, weight: Any, value: Any, chosen: Any, e: Any, low: Any, high: Any) -> None:
    # Eight rows of the weight at once, so that ``out`` is read and written an eighth as often.
    r0, r1, r2, r3 = chosen[e], chosen[e + 1], chosen[e + 2], chosen[e + 3]
    r4, r5, r6, r7 = chosen[e + 4], chosen[e + 5], chosen[e + 6], chosen[e + 7]
    v0, v1, v2, v3 = value[e], value[e + 1], value[e + 2], value[e + 3]
    v4, v5, v6, v7 = value[e + 4], value[e + 5], value[e + 6], value[e + 7]
    for j in range(low, high):
        out[j] += (
            v0 * weight[r0, j]
            + v1 * weight[r1, j]
            + v2 * weight[r2, j]
            + v3 * weight[r3, j]
            + v4 * weight[r4, j]
            + v5 * weight[r5, j]
            + v6 * weight[r6, j]
            + v7 * weight[r7, j]
        )


@native
def dense(work: Any) -> None:
    """Write out[r, o] = x[r] · weight[o] + bias[o]."""
    w = words(work, 9)
    rows, inner, outer, piece = w[1], w[2], w[3], w[4]
    x, weight = carray(at(w[5]), (rows, inner), np.float32), carray(at(w[6]), (outer, inner), np.float32)
    bias, out = carray(at(w[7]), outer, np.float32), carray(at(w[8]), (rows, outer), np.float32)
    for o in claimed(work, outer, piece):
        for r in range(rows):
            out[r, o] = _dot(x[r], weight[o]) + bias[o]


@native
def integer(work: Any) -> None:
    """Write out[r, o] = ((count[r] · weight[o]) · scale[o] + rest[o])/gain[r] + bias[o]."""
    w = words(work, 13)
    rows, inner, outer, piece, block = w[1], w[2], w[3], w[4], w[10]
    count, weight = carray(at(w[5]), (rows, inner), np.int16), carray(at(w[6]), (outer, inner), np.int8)
    scale, bias = carray(at(w[7]), outer, np.float32), carray(at(w[8]), outer, np.float32)
    out, rest = carray(at(w[9]), (rows, outer), np.float32), carray(at(w[11]), outer, np.float32)
    gains = carray(at(w[12]), rows * (w[12] != 0), np.float32)
    for o in claimed(work, outer, piece):
        for r in range(rows):
            # In blocks whose sums cannot leave 32 bits.
            total = np.int64(0)
            for begin in range(0, inner, block):
                end = min(inner, begin + block)
                total += _dot_integer(count[r, begin:end], weight[o, begin:end])
            back = np.float32(1) / gains[r] if len(gains) else np.float32(1)
            out[r, o] = (np.float32(total) * scale[o] + rest[o]) * back + bias[o]


@native
def events(work: Any) -> None:
    """Write bias + Σ count[c] · unit[c] · weight[c] over the channels whose count is not zero; one row."""
    w = words(work, 9)
    inner, outer, piece = w[1], w[2], w[3]
    count, unit = carray(at(w[4]), inner, np.int16), carray(at(w[5]), inner, np.float32)
    weight = carray(at(w[6]), (inner, outer), np.float32)
    bias, out = carray(at(w[7]), outer, np.float32), carray(at(w[8]), outer, np.float32)
    # Every thread makes the list for itself: that is quicker than to wait for another.
    chosen, value = np.empty(inner, np.int64), np.empty(inner, np.float32)
    fired = 0
    for c in range(inner):
        if count[c] != 0:
            chosen[fired], value[fired] = c, np.float32(count[c]) * unit[c]
            fired += 1
    whole = fired // 8 * 8
    for i in claimed(work, (outer + piece - 1) // piece, 1):
        low, high = i * piece, min(outer, (i + 1) * piece)
        for j in range(low, high):
            out[j] = bias[j]
        for e in range(0, whole, 8):
            _add_rows(out, weight, value, chosen, e, low, high)
        for e in range(whole, fired):
            for j in range(low, high):
                out[j] += value[e] * weight[chosen[e], j]
