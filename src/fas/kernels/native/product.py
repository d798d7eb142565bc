"""Products with few rows in machine code: each weight is read once, which is all that such a product costs."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from fas.kernels.native.calling import at, claimed, native, words

# Lets LLVM add up in the lanes of a vector: the order of a sum is free here, as it is in BLAS.
_SUMS = {"reassoc", "contract", "nsz"}
# Rows of a weight that are read side by side; bytes of them that fit in the first cache; how far to look ahead else.
_ROWS, _NEAR, _AHEAD = 4, 1 << 14, 1 << 11
_I32, _F32 = ir.IntType(32), ir.FloatType()
_TYPES = {np.int8: ir.IntType(8), np.int16: ir.IntType(16), np.int32: _I32, np.float32: _F32}


def fetch(builder: Any, address: Any) -> None:
    """Have a line of memory brought into the cache, whether it is ours or not."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(function, [builder.inttoptr(address, byte), _I32(0), _I32(3), _I32(1)])


def _four_sums(of_x: Any, of_weight: Any, of_sum: Any, lanes: int) -> Any:
    """Return the function (x, weight, number, row) → four products, of types and vectors that LLVM splits as it must.

    ``x`` and ``weight`` are addresses of so many numbers, and ``row`` the bytes to the next row of the weight, 0 to
    have the first one four times.
    """
    real, size = of_sum is np.float32, np.dtype(of_weight).itemsize
    sums = ir.VectorType(_TYPES[of_sum], lanes if real else lanes // 2)
    add_up = f"llvm.vector.reduce.{'f' * real}add.v{sums.count}{'f' if real else 'i'}32"

    def add_product(builder: Any, sofar: Any, x: Any, weight: Any) -> Any:
        if real:
            return builder.fadd(sofar, builder.fmul(x, weight, flags=["contract"]), flags=["contract"])
        wide = ir.VectorType(_I32, lanes)
        products = builder.mul(builder.sext(x, wide), builder.sext(weight, wide))
        even, odd = (ir.Constant(ir.VectorType(_I32, sums.count), list(range(i, lanes, 2))) for i in (0, 1))
        # Neighbours are added up at once: by that LLVM knows what processors have for numbers of 16 bits.
        pairs = builder.add(*(builder.shuffle_vector(products, products, part) for part in (even, odd)))
        return builder.add(sofar, pairs)

    def typed(typing: Any, x: Any, weight: Any, vectors: Any, row: Any, ahead: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x, weight, vectors, row, ahead = arguments
            totals = [cgutils.alloca_once_value(builder, ir.Constant(sums, None)) for _ in range(_ROWS)]

            def vector(kind: Any, start: Any) -> Any:
                place = builder.inttoptr(start, ir.VectorType(_TYPES[kind], lanes).as_pointer())
                return builder.load(place, align=np.dtype(kind).itemsize)

            with cgutils.for_range(builder, vectors) as loop:
                first, place = (
                    builder.add(start, builder.mul(loop.index, start.type(lanes * np.dtype(kind).itemsize)))
                    for start, kind in ((x, of_x), (weight, of_weight))
                )
                factor = vector(of_x, first)
                for total in totals:
                    fetch(builder, builder.add(place, ahead))
                    sofar = add_product(builder, builder.load(total), factor, vector(of_weight, place))
                    builder.store(sofar, total)
                    place = builder.add(place, row)
            start = [_F32(0.0)] if real else []
            kind = ir.FunctionType(_TYPES[of_sum], [*(value.type for value in start), sums])
            function = cgutils.get_or_insert_function(builder.module, kind, add_up)
            order = ["reassoc"] if real else []
            found = [builder.call(function, [*start, builder.load(total)], fastmath=order) for total in totals]
            return context.make_tuple(builder, signature.return_type, found)

        return types.UniTuple(from_dtype(np.dtype(of_sum)), _ROWS)(*[types.int64] * 5), generate

    in_vectors: Any = intrinsic(typed)

    @njit(inline="never")
    def four_sums(x: Any, weight: Any, number: Any, row: Any) -> Any:
        ahead = _ROWS * number * size
        a, b, c, d = in_vectors(x, weight, number // lanes, row, ahead if ahead <= _NEAR else _AHEAD)
        values = carray(at(x), number, of_x)
        w, w1 = carray(at(weight), number, of_weight), carray(at(weight + row), number, of_weight)
        w2, w3 = carray(at(weight + 2 * row), number, of_weight), carray(at(weight + 3 * row), number, of_weight)
        for k in range(number // lanes * lanes, number):
            value = of_sum(values[k])
            a, b = of_sum(a + value * of_sum(w[k])), of_sum(b + value * of_sum(w1[k]))
            c, d = of_sum(c + value * of_sum(w2[k])), of_sum(d + value * of_sum(w3[k]))
        return a, b, c, d

    return four_sums


_four_real = _four_sums(np.float32, np.float32, np.float32, 16)
_four_whole = _four_sums(np.int16, np.int8, np.int32, 32)


@njit
def _groups(work: Any, outer: Any, piece: Any) -> Any:
    """Yield the first row of each four of a weight that fall to this thread, and of the last few each by itself."""
    whole = outer // _ROWS
    for group in claimed(work, whole + outer % _ROWS, piece):
        yield group * _ROWS - max(group - whole, 0) * (_ROWS - 1)


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
    rows, inner, outer = w[1], w[2], w[3]
    bias, out = carray(at(w[7]), outer, np.float32), carray(at(w[8]), (rows, outer), np.float32)
    for o in _groups(work, outer, w[4]):
        together = o + _ROWS <= outer
        for r in range(rows):
            sums = _four_real(w[5] + 4 * inner * r, w[6] + 4 * inner * o, inner, 4 * inner * together)
            for i in range(_ROWS if together else 1):
                out[r, o + i] = sums[i] + bias[o + i]


@native
def integer(work: Any) -> None:
    """Write out[r, o] = ((count[r] · weight[o]) · scale[o] + rest[o])/gain[r] + bias[o]."""
    w = words(work, 13)
    rows, inner, outer, block = w[1], w[2], w[3], w[10]
    scale, bias = carray(at(w[7]), outer, np.float32), carray(at(w[8]), outer, np.float32)
    out, rest = carray(at(w[9]), (rows, outer), np.float32), carray(at(w[11]), outer, np.float32)
    gains = carray(at(w[12]), rows * (w[12] != 0), np.float32)
    total = np.empty(_ROWS, np.int64)
    for o in _groups(work, outer, w[4]):
        together = o + _ROWS <= outer
        for r in range(rows):
            # In blocks whose sums cannot leave 32 bits.
            total[:] = 0
            for begin in range(0, inner, block):
                number = min(inner, begin + block) - begin
                count, weight = w[5] + 2 * (inner * r + begin), w[6] + inner * o + begin
                sums = _four_whole(count, weight, number, inner * together)
                for i in range(_ROWS):
                    total[i] += sums[i]
            back = np.float32(1) / gains[r] if len(gains) else np.float32(1)
            for i in range(_ROWS if together else 1):
                p = o + i
                out[r, p] = (np.float32(total[i]) * scale[p] + rest[p]) * back + bias[p]


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
