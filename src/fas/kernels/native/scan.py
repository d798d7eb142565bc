"""Neurons over time in vector registers: a few lanes of channels run through all steps before the next ones do.

LLVM turns loops over channels into vectors, but then keeps the state of every neuron in memory from step to step, which
costs more than the arithmetic. So the steps of a block of lanes are written in LLVM's own language here. The arithmetic
is that of the torch kernels, operation by operation; where a spike is ±1, F_t ≥ N + 1 is asked of what F_t is the
floor of.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from fas.kernels.native.calling import at, claimed, native, words
from fas.kernels.native.tally import flush

BINARY, TERNARY, GRADED = range(3)
# What comes in: the value of every step, the running mean, or one value for all steps.
VALUES, MEANS, EVEN = range(3)
# What goes out: spikes times their worth, N_t times its worth at step t, or spikes as bytes.
EMITTED, COUNTED, BYTES = range(3)
# Bytes of a vector; LLVM splits what the processor lacks.
_WIDTH = 64
# Vectors in a block: two hide the latency of a division.
_GROUPS = 2
_I8, _I32, _I64, _DOUBLE = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.DoubleType()


class _Lanes:
    """Writes code on vectors of float32 or float64."""

    def __init__(self, builder: Any, size: int) -> None:
        self.builder = builder
        self.size = size
        self.lanes = _WIDTH // size
        self.real = ir.FloatType() if size == 4 else _DOUBLE
        self.type = self.of(self.real)

    def of(self, element: Any) -> Any:
        return ir.VectorType(element, self.lanes)

    def every(self, value: float) -> Any:
        return ir.Constant(self.type, [value] * self.lanes)

    def splat(self, value: Any) -> Any:
        nothing = ir.Constant(self.of(value.type), ir.Undefined)
        first = self.builder.insert_element(nothing, value, ir.Constant(_I32, 0))
        return self.builder.shuffle_vector(first, nothing, ir.Constant(self.of(_I32), [0] * self.lanes))

    def _place(self, start: Any, group: int, kind: Any, size: int) -> Any:
        byte = ir.Constant(_I64, group * self.lanes * size)
        return self.builder.inttoptr(self.builder.add(start, byte), kind.as_pointer())

    def load(self, start: Any, group: int) -> Any:
        loaded = self.builder.load(self._place(start, group, self.type, self.size))
        loaded.align = self.size
        return loaded

    def store(self, value: Any, start: Any, group: int, size: int) -> None:
        self.builder.store(value, self._place(start, group, value.type, size)).align = size

    def increase(self, value: Any, start: Any, group: int) -> None:
        """Add int32 lanes to those in memory."""
        place = self._place(start, group, value.type, 4)
        before = self.builder.load(place)
        before.align = 4
        self.builder.store(self.builder.add(before, value), place).align = 4

    def call(self, name: str, value: Any) -> Any:
        """Call a function of LLVM on every lane."""
        signature = ir.FunctionType(self.type, [self.type])
        whole = f"llvm.{name}.v{self.lanes}f{8 * self.size}"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, signature, whole), [value])

    def clip(self, value: Any, lower: Any, upper: Any) -> Any:
        """Return the value or the bound that it exceeds; NaN stays NaN."""
        raised = self.builder.select(self.builder.fcmp_ordered("<", value, lower), lower, value)
        return self.builder.select(self.builder.fcmp_ordered(">", raised, upper), upper, raised)


def _block(
    typing: Any,
    x: Any, x_step: Any, out: Any, out_step: Any, divisor: Any, unit: Any, v_init: Any, offset: Any,
    start: Any, total: Any, count: Any, tally: Any, steps: Any, first: Any, carried: Any, lower: Any, upper: Any,
    size: Any, groups: Any, drive: Any, recursion: Any, answer: Any,
) -> Any:  # fmt: skip
    """Run ``groups`` vectors of neurons through all steps; arguments are addresses, and whole numbers after them.

    ``divisor`` is θ, or for EVEN the scale, which multiplies. The last five are known when code is written.
    """
    constants = (size, groups, drive, recursion, answer)
    if not all(isinstance(constant, types.IntegerLiteral) for constant in constants):
        return None
    size, groups, drive, recursion, answer = (constant.literal_value for constant in constants)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (
            x, x_step, out, out_step, divisor, unit, v_init, offset,
            start, total, count, tally, steps, first, carried, lower, upper,
        ) = arguments[:17]  # fmt: skip
        on = _Lanes(builder, size)
        every = range(groups)
        # Σ x is added up in float64, as torch does.
        wide = on.of(_DOUBLE) if drive == VALUES else on.type

        def number(value: Any) -> Any:
            return builder.sitofp(value, on.real)

        def held(kind: Any, initial: Any) -> Any:
            place = cgutils.alloca_once(builder, kind)
            builder.store(initial, place)
            return place

        theta = [on.load(divisor, g) for g in every]
        v, mu = [on.load(v_init, g) for g in every], [on.load(offset, g) for g in every]
        worth = [on.load(unit, g) for g in every] if answer != BYTES else []
        zeros, ones, least, most = on.every(0), on.every(1), on.splat(number(lower)), on.splat(number(upper))
        nothing = ir.Constant(wide, [0.0] * on.lanes)
        added = [held(wide, nothing) for _ in every]
        summed = [held(on.type, zeros) for _ in every]
        sent = [held(on.type, zeros) for _ in every]
        counted, before, even = [], [], []
        for g in every:
            counted.append(held(on.type, zeros if drive == EVEN else on.load(count, g)))
            if drive == VALUES:
                goes_on = builder.icmp_signed("!=", carried, ir.Constant(_I64, 0))
                before.append(builder.select(goes_on, on.load(start, g), zeros))
            if drive == EVEN:
                even.append(builder.fmul(builder.fsub(on.load(x, g), mu[g]), theta[g]))
        source, target = held(_I64, x), held(_I64, out)
        with cgutils.for_range(builder, steps) as loop:
            step = builder.add(loop.index, first)
            t = on.splat(number(step))
            here, there = builder.load(source), builder.load(target)
            low, high = least, most
            if drive == EVEN:
                share = builder.fdiv(builder.sitofp(step, _DOUBLE), builder.sitofp(steps, _DOUBLE))
                share = on.splat(builder.fptrunc(share, on.real) if size == 4 else share)
                if recursion != GRADED:
                    # At most one spike a step.
                    low, high = on.clip(builder.fneg(t), least, zeros), on.clip(t, zeros, most)
            for g in every:
                if drive == EVEN:
                    reached = builder.fadd(builder.fmul(even[g], share), v[g])
                else:
                    value = on.load(here, g)
                    if drive == VALUES:
                        value = builder.fpext(value, wide) if size == 4 else value
                        value = builder.fadd(builder.load(added[g]), value)
                        builder.store(value, added[g])
                        value = builder.fptrunc(value, on.type) if size == 4 else value
                        value = builder.fadd(value, before[g])
                    else:
                        value = builder.fmul(value, t)
                    builder.store(value, summed[g])
                    value = builder.fdiv(builder.fsub(value, builder.fmul(mu[g], t)), theta[g])
                    reached = builder.fadd(value, v[g])
                n = builder.load(counted[g])
                if drive == EVEN or recursion == GRADED:
                    after = on.clip(on.call("floor", reached), low, high)
                    change = builder.fsub(after, n)
                else:
                    # Bounds of the binary neuron cannot be left.
                    reached = on.clip(reached, low, high) if recursion == TERNARY else reached
                    rises = builder.fcmp_ordered(">=", reached, builder.fadd(n, ones))
                    falls = builder.fcmp_ordered("<", reached, n)
                    change = builder.select(falls, on.every(-1), zeros) if recursion == TERNARY else zeros
                    change = builder.select(rises, ones, change)
                    after = builder.fadd(n, change)
                builder.store(after, counted[g])
                fired = on.call("fabs", change)
                builder.store(builder.fadd(builder.load(sent[g]), fired), sent[g])
                if answer == BYTES:
                    on.store(builder.trunc(builder.fptosi(change, on.of(_I32)), on.of(_I8)), there, g, 1)
                elif answer == COUNTED:
                    worth_now = builder.fdiv(worth[g], t)
                    on.store(builder.fadd(builder.fmul(after, worth_now), mu[g]), there, g, size)
                else:
                    on.store(builder.fadd(builder.fmul(change, worth[g]), mu[g]), there, g, size)
            builder.store(builder.add(here, x_step), source)
            builder.store(builder.add(there, out_step), target)
        if drive != EVEN:
            for g in every:
                on.store(builder.load(summed[g]), total, g, size)
                on.store(builder.load(counted[g]), count, g, size)
        with builder.if_then(builder.icmp_signed("!=", tally, ir.Constant(_I64, 0))):
            for g in every:
                on.increase(builder.fptosi(builder.load(sent[g]), on.of(_I32)), tally, g)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 17, *constants), generate


block: Any = intrinsic(prefer_literal=True)(_block)


@njit(inline="always")
def _gather(place: Any, source: Any, steps: Any, step: Any, many: Any, real: Any) -> None:
    """Copy ``many`` numbers of every step to the rows of a block."""
    for n in range(steps):
        values = carray(at(source + n * step), many, real)
        for c in range(many):
            place[n, c] = values[c]


def scan_kernel(drive: int, recursion: int, answer: int, real: Any) -> Any:
    """Return a kernel for np.float32 or np.float64.

    Its words are those of the other neurons up to 13, then: number of the first step, whether Σ x continues, the
    addresses of Σ x before, Σ x and N, that of the spikes sent by channel (0: nobody asks), and how many rows a sum of
    spikes in 32 bits holds.
    """
    size = np.dtype(real).itemsize
    lanes, groups = _WIDTH // size, _GROUPS
    answered = np.int8 if answer == BYTES else real
    width = 1 if answer == BYTES else size

    def scan(work: Any) -> None:
        w = words(work, 21)
        rows, channels, piece, lower, upper, steps = w[1], w[2], w[3], w[10], w[11], w[12]
        first, carried, sent, most = w[14], w[15], w[19], w[20]
        divisor = w[6] if drive == EVEN else w[7]
        x_step = 0 if drive == EVEN else size * rows * channels
        stride = groups * lanes
        whole = channels // stride * stride
        local = np.zeros((channels + lanes) * (sent != 0), np.int32)
        tally = local.ctypes.data if sent != 0 else 0
        # Channels that fill no block run in one of their own, where lanes to spare have θ = 1 and no input.
        place_x, place_out = np.zeros((steps, lanes), real), np.zeros((steps, lanes), answered)
        place, padded = np.zeros((3, lanes), real), np.ones((4, stride), real)
        sources = (divisor, w[7], w[8], w[9])
        for k in range(4):
            _gather(padded[k : k + 1], sources[k] + size * whole, 1, 0, channels - whole, real)
        beside, beyond, row = place.ctypes.data, padded.ctypes.data, lanes * size
        done = 0
        for r in claimed(work, rows, piece):
            for b in range(0, whole, stride):
                o, p = r * channels + b, size * b
                block(
                    w[4] + size * o, x_step, w[5] + width * o, width * rows * channels,
                    divisor + p, w[7] + p, w[8] + p, w[9] + p,
                    w[16] + size * o, w[17] + size * o, w[18] + size * o, tally + 4 * b * (sent != 0),
                    steps, first, carried, lower, upper, size, groups, drive, recursion, answer,
                )  # fmt: skip
            for b in range(whole, channels, lanes):
                o, p, many = r * channels + b, size * b, min(lanes, channels - b)
                _gather(place_x, w[4] + size * o, 1 if drive == EVEN else steps, x_step, many, real)
                if drive != EVEN:
                    _gather(place[1:2], w[18] + size * o, 1, 0, many, real)
                    if carried:
                        _gather(place[0:1], w[16] + size * o, 1, 0, many, real)
                p -= size * whole
                block(
                    place_x.ctypes.data, 0 if drive == EVEN else row, place_out.ctypes.data, lanes * width,
                    beyond + p, beyond + 2 * row + p, beyond + 4 * row + p, beyond + 6 * row + p,
                    beside, beside + 2 * row, beside + row, tally + 4 * b * (sent != 0),
                    steps, first, carried, lower, upper, size, 1, drive, recursion, answer,
                )  # fmt: skip
                for n in range(steps):
                    answers = carray(at(w[5] + width * (n * rows * channels + o)), many, answered)
                    for c in range(many):
                        answers[c] = place_out[n, c]
                if drive != EVEN:
                    total, count = carray(at(w[17] + size * o), many, real), carray(at(w[18] + size * o), many, real)
                    for c in range(many):
                        total[c], count[c] = place[2, c], place[1, c]
            done += 1
            if sent != 0 and done == most:
                flush(sent, local, channels)
                done = 0
        if sent != 0:
            flush(sent, local, channels)
        # Addresses do not keep arrays alive.
        place[0, 0], padded[0, 0], place_x[0, 0], place_out[0, 0] = 0, 0, 0, 0

    return native(scan)
