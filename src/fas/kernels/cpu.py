"""Kernels in machine code for the CPU, made by numba and kept on disk; inference only."""

from __future__ import annotations

import functools
import importlib
from array import array
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from fas.kernels import torch_
from fas.kernels.interface.code import Code, State

name = "cpu"
_OPS: dict[str, tuple[torch.dtype, ...]] = {
    **dict.fromkeys(("encode", "counts", "decode", "emit", "pack", "scan", "spikes"), (torch.float32, torch.float64)),
    "unpack": (torch.uint8,),
    **dict.fromkeys(("linear", "event_linear", "spike_linear", "integer_linear"), (torch.float32,)),
}
# Activations that one thread takes at a time: they and their answers stay in its first cache.
_PIECE = 4096
_DENSE = torch.contiguous_format
# Fours of outputs that one thread takes at a time.
_FOURS = 8
# Rows up to which a product only waits for the weights.
_FEW_ROWS = 4
# Share of channels that spike below which selecting rows of the weight beats reading all of it.
SPARSE: float = 0.5
# Rows of spikes from which tables of sums beat a dense product, which they do at any density.
TABLE_ROWS: float = 128
_RECURSIONS = {"binary": 0, "ternary": 1, "graded": 2}
_DRIVES = {"values": 0, "means": 1, "even": 2}
_ANSWERS = {"emitted": 0, "counted": 1, "bytes": 2}


def supports(op: str, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    if device.type != "cpu":
        return False, f"the tensors are on {device.type}"
    if dtype not in _OPS.get(op, ()):
        return False, f"it has no {op} for {dtype}"
    reason = _unavailable()
    return not reason, reason


@functools.cache
def _unavailable() -> str:
    if find_spec("numba") is None:
        return "numba is not installed: pip install 'fas[fast]'"
    reason: str = _native("calling").unavailable()
    return reason


@functools.cache
def _native(module: str) -> Any:
    return importlib.import_module(f"fas.kernels.native.{module}")


@functools.cache
def _kernel(module: str, dtype: torch.dtype, *which: Any) -> Any:
    """Return a neuron's kernel for float32 or float64."""
    import numpy as np

    make = getattr(_native(module), f"{module}_kernel")
    return make(*which, np.float32 if dtype == torch.float32 else np.float64)


@functools.cache
def _run() -> Any:
    return _native("calling").run


def _written(out: Tensor) -> Tensor:
    written: Tensor = _native("calling").written(out)
    return written


def _rows(x: Tensor, channels: int) -> tuple[int, int, int]:
    rows = x.numel() // channels if channels else 0
    return rows, channels, max(1, _PIECE // channels) if channels else 1


def _parameters(code: Code, unit: Tensor) -> tuple[int, ...]:
    """Addresses of scale, unit, v_0 and μ, and the bounds. Every tensor of a ``Code`` here is of shape (C,)."""
    scale, v_init, offset = code.scale.data_ptr(), code.v_init.data_ptr(), code.offset.data_ptr()
    return scale, unit.data_ptr(), v_init, offset, code.lower, code.upper


def _tally(sent: Tensor | None, most: int) -> tuple[int, int]:
    """Where spikes are added up by channel, int64, and how many rows with up to ``most`` of them 32 bits hold."""
    return (0 if sent is None else sent.data_ptr()), (2**31 - 1) // max(1, most)


def _gain(code: Code, gain: Tensor | None) -> tuple[int, int]:
    """Bits of the mean level below which a token is lifted, and where gains go."""
    least: int = _native("calling").bits(0.0 if code.adapts is None else code.adapts.least)
    return least, (0 if gain is None else gain.data_ptr())


def encode(x: Tensor, code: Code, sent: Tensor | None = None) -> Tensor:
    x = x.contiguous()
    return _encode("encode", x, _written(torch.empty_like(x)), code, sent, None)


def counts(x: Tensor, code: Code, sent: Tensor | None = None, gain: Tensor | None = None) -> Tensor:
    return _encode("counts", x.contiguous(), torch.empty(x.shape, dtype=torch.int16), code, sent, gain)


def _encode(op: str, x: Tensor, out: Tensor, code: Code, sent: Tensor | None, gain: Tensor | None) -> Tensor:
    """Run a kernel on words of which those that a call changes are filled in: most are the same for all calls."""
    looks_up = code.table is not None and not (code.table.even and sent is None)
    kernel, words = code.words.get((op, looks_up)) or _words(op, x, code, looks_up)
    words = words[:]
    words[1], words[4], words[5] = x.numel() // (words[2] or 1), x.data_ptr(), out.data_ptr()
    if sent is not None:
        words[-4] = sent.data_ptr()
    if gain is not None:
        words[-1] = gain.data_ptr()
    _native("calling").start(kernel, x.nbytes + out.nbytes, words)
    return out


def _words(op: str, x: Tensor, code: Code, looks_up: bool) -> Any:
    """Make them, and keep them with the code: nobody adds up spikes by channel, or wants gains."""
    work = [0, *_rows(x, x.shape[-1]), 0, 0, *_parameters(code, code.unit)]
    most = max(code.upper, -code.lower)
    if looks_up:
        assert code.table is not None
        entries, most = code.table.change if op == "encode" else code.table.settled, code.timesteps
        work += [entries.data_ptr(), 1, code.table.spikes.data_ptr()]
    words = array("q", (*work, *_tally(None, most), *_gain(code, None)))
    made = code.words[op, looks_up] = _kernel("digits" if looks_up else "neuron", x.dtype, op), words
    return made


def _look_up(
    op: str, x: Tensor, out: Tensor, code: Code, entries: Tensor, rows: int, unit: Tensor, sent: Tensor | None,
    gain: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Run a kernel that looks counts up in ``rows`` rows of entries."""
    assert code.table is not None
    work = (*_rows(x, x.shape[-1]), x.data_ptr(), out.data_ptr(), *_parameters(code, unit))
    more = (entries.data_ptr(), rows, code.table.spikes.data_ptr(), *_tally(sent, code.timesteps), *_gain(code, gain))
    _run()(_kernel("digits", x.dtype, op), x.nbytes + out.nbytes, *work, *more)
    return out


def decode(counts: Tensor, code: Code, dtype: torch.dtype, gain: Tensor | None = None) -> Tensor:
    counts = counts.contiguous()
    out = torch.empty(counts.shape, dtype=dtype)
    work = (*_rows(counts, counts.shape[-1]), counts.data_ptr(), out.data_ptr())
    _run()(
        _kernel("neuron", dtype, "decode"), out.nbytes, *work, *_parameters(code, code.unit)[:4], *_gain(code, gain)[1:]
    )
    return out


def emit(x: Tensor, code: Code, sent: Tensor | None = None) -> Tensor:
    assert code.recursion is not None
    x = x.contiguous()
    out = _written(x.new_empty(code.timesteps, *x.shape))
    if code.table is not None:
        return _look_up("emit", x, out, code, code.table.emitted, code.timesteps, code.step_unit, sent)
    work = (*_rows(x, x.shape[-1]), x.data_ptr(), out.data_ptr(), *_parameters(code, code.step_unit))
    # Neither Σ x nor N is asked for; the first step is 1.
    more = (code.timesteps, 0, 1, 0, 0, 0, 0, *_tally(sent, code.timesteps * max(code.upper, -code.lower)))
    _run()(
        _kernel("scan", x.dtype, _DRIVES["even"], _RECURSIONS[code.recursion], _ANSWERS["emitted"]),
        out.nbytes,
        *work,
        *more,
    )
    return out


def pack(x: Tensor, code: Code, gain: Tensor | None = None) -> Tensor:
    assert code.recursion is not None
    x = x.contiguous()
    out = torch.empty(code.planes, -(-code.timesteps // 8), *x.shape, dtype=torch.uint8)
    if code.table is not None:
        return _look_up("pack", x, out, code, code.table.bits, out.shape[0] * out.shape[1], code.unit, None, gain)
    work = (*_rows(x, x.shape[-1]), x.data_ptr(), out.data_ptr(), *_parameters(code, code.unit))
    _run()(_kernel("neuron", x.dtype, "pack"), 2 * x.nbytes, *work, code.timesteps)
    return out


def unpack(bits: Tensor, code: Code, sent: Tensor | None = None) -> Tensor:
    bits = bits.contiguous()
    out = torch.empty(bits.shape[2:], dtype=torch.int16)
    if code.table is not None:
        worth = code.table.worth_of_bytes
        work = (*_rows(out, out.shape[-1]), bits.data_ptr(), out.data_ptr(), len(worth) - 1, worth.data_ptr())
        _run()(_native("digits").unpack, out.nbytes, *work, *_tally(sent, code.timesteps))
        return out
    work = (*_rows(out, out.shape[-1]), bits.data_ptr(), out.data_ptr(), *bits.shape[:2])
    _run()(_native("neuron").unpack, out.nbytes, *work, *_tally(sent, bits.shape[0] * code.timesteps))
    return out


def scan(
    x: Tensor, code: Code, *, first: int, difference: bool, state: State | None = None, sent: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    out = _written(torch.empty_like(x, memory_format=_DENSE))
    return _scan("counted" if difference else "emitted", x, code, first, difference, state, sent, out)


def spikes(
    x: Tensor, code: Code, *, first: int, difference: bool, state: State | None = None, sent: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    out = _written(torch.empty(x.shape, dtype=torch.int8))
    return _scan("bytes", x, code, first, difference, state, sent, out)


def _scan(
    answer: str, x: Tensor, code: Code, first: int, difference: bool, state: State | None, sent: Tensor | None,
    out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    assert code.recursion is not None
    x = x.contiguous()
    sums = torch.empty_like(x[0])
    number = torch.zeros_like(sums) if state is None else state[1].clone(memory_format=_DENSE)
    start = sums if state is None else state[0].contiguous()
    work = (*_rows(sums, x.shape[-1]), x.data_ptr(), out.data_ptr(), *_parameters(code, code.threshold))
    places = (start.data_ptr(), sums.data_ptr(), number.data_ptr())
    more = (len(x), 0, first, state is not None, *places, *_tally(sent, len(x) * (code.upper - code.lower)))
    drive = _DRIVES["means" if difference else "values"]
    kernel = _kernel("scan", x.dtype, drive, _RECURSIONS[code.recursion], _ANSWERS[answer])
    _run()(kernel, x.nbytes + out.nbytes, *work, *more)
    return out, sums, number


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    outer, inner = weight.shape
    rows = x.numel() // inner
    if rows == 0 or rows > _FEW_ROWS:
        return torch_.linear(x, weight, bias)
    x = x.contiguous()
    out = x.new_empty(*x.shape[:-1], outer)
    pointers = (x.data_ptr(), weight.data_ptr(), bias.data_ptr(), out.data_ptr())
    _run()(_native("product").dense, weight.nbytes, rows, inner, outer, _FOURS, *pointers)
    return out


def event_linear(counts: Tensor, unit: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    inner, outer = weight.shape
    out = unit.new_empty(outer)
    pointers = (counts.data_ptr(), unit.data_ptr(), weight.data_ptr(), bias.data_ptr(), out.data_ptr())
    # Long stretches of every row: short ones end before the memory has noticed that they go on.
    columns = 64 * -(-outer // (64 * torch.get_num_threads()))
    _run()(_native("product").events, int(SPARSE * weight.nbytes), inner, outer, columns, *pointers)
    return out


def spike_linear(
    spikes: Tensor, threshold: Tensor, weight: Tensor, bias: Tensor, *, first: int, difference: bool
) -> Tensor:
    table = _native("table")
    spikes = spikes.contiguous()
    outer, inner = weight.shape
    rows = spikes.numel() // inner
    out = torch.empty(*spikes.shape[:-1], outer, dtype=torch.float32)
    if rows == 0:
        return out
    chunks = -(-inner // table.CHUNK)
    states = torch.empty(chunks, rows, table.GROUPS, dtype=torch.uint8)
    _run()(table.states, spikes.nbytes, rows, inner, chunks, spikes.data_ptr(), states.data_ptr())
    across = not weight.is_contiguous()
    pointers = (states, weight, threshold, bias, out)
    addresses = tuple(tensor.data_ptr() for tensor in pointers)
    sizes = (rows, inner, outer, across)
    _run()(table.product, weight.nbytes + out.nbytes, *sizes, *addresses, len(spikes), first, difference)
    return out


def integer_linear(
    counts: Tensor, weight: Tensor, scale: Tensor, rest: Tensor, gain: Tensor | None, bias: Tensor, largest: int
) -> Tensor:
    counts = counts.contiguous()
    rows, inner, outer = *counts.shape, len(weight)
    if rows == 0 or rows > _FEW_ROWS:
        return torch_.integer_linear(counts, weight, scale, rest, gain, bias, largest)
    out = torch.empty(rows, outer, dtype=torch.float32)
    pointers = (counts.data_ptr(), weight.data_ptr(), scale.data_ptr(), bias.data_ptr(), out.data_ptr())
    more = (rest.data_ptr(), 0 if gain is None else gain.data_ptr())
    # So many products of 16 by 8 bits add up below 2^31.
    block = (2**31 - 1) // (128 * largest)
    _run()(_native("product").integer, weight.nbytes, rows, inner, outer, _FOURS, *pointers, block, *more)
    return out
