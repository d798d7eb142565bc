"""Kernels for GPUs, written in Triton; inference in float32. Products are those of torch."""

from __future__ import annotations

import functools
import os
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from fas.kernels import torch_
from fas.kernels.interface.code import Code, State

name = "triton"
_OPS = ("encode", "counts", "scan")
_RECURSIONS = {"binary": 0, "ternary": 1, "graded": 2}


def supports(op: str, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    if op not in _OPS or dtype != torch.float32:
        return False, f"it has no {op} for {dtype}"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return False, f"the tensors are on {device.type}"
    if find_spec("triton") is None:
        return False, "triton is not installed: it comes with torch built for CUDA"
    return True, ""


@functools.cache
def _gpu() -> Any:
    from fas.kernels.native import gpu

    return gpu


def encode(x: Tensor, code: Code, sent: Tensor | None = None) -> Tensor:
    x, gain = torch_.lifted(x, code)
    out = _encode(x, code, torch.empty_like(x, memory_format=torch.contiguous_format), sent)
    return out if gain is None else out / gain


def counts(x: Tensor, code: Code, sent: Tensor | None = None, gain: Tensor | None = None) -> Tensor:
    x, _ = torch_.lifted(x, code, gain)
    return _encode(x, code, torch.empty(x.shape, dtype=torch.int16, device=x.device), sent)


def scan(
    x: Tensor, code: Code, *, first: int, difference: bool, state: State | None = None, sent: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    assert code.recursion is not None
    gpu, x = _gpu(), x.contiguous()
    out = torch.empty_like(x)
    before = (torch.zeros_like(x[0]), torch.zeros_like(x[0])) if state is None else state
    sums, number = (tensor.clone(memory_format=torch.contiguous_format) for tensor in before)
    if sums.numel():
        rows, grid = _grid(sums)
        # Without fused multiply-adds, so that a count is that of every other backend; Σ x is added up in float32.
        gpu.scan[grid](
            x, out, code.threshold, code.v_init, code.offset, sums, number, number if sent is None else sent,
            rows, x.shape[-1], code.lower, code.upper, first, len(x),
            RECURSION=_RECURSIONS[code.recursion], DIFFERENCE=difference, TALLY=sent is not None,
            ROWS=gpu.ROWS, CHANNELS=gpu.CHANNELS, enable_fp_fusion=False,
        )  # fmt: skip
    return out, sums, number


def _grid(x: Tensor) -> tuple[int, tuple[int, int]]:
    """Return the rows of [*B, C] and how many tiles cover them."""
    gpu, channels = _gpu(), x.shape[-1]
    rows = x.numel() // channels
    return rows, (-(-rows // gpu.ROWS), -(-channels // gpu.CHANNELS))


def _encode(x: Tensor, code: Code, out: Tensor, sent: Tensor | None) -> Tensor:
    gpu, x = _gpu(), x.contiguous()
    table = None if code.table is not None and code.table.even and sent is None else code.table
    if x.numel():
        rows, grid = _grid(x)
        gpu.encode[grid](
            x, out, code.scale, code.unit, code.v_init, code.offset, x if sent is None else sent,
            x if table is None else table.change, x if table is None else table.spikes,
            rows, x.shape[-1], code.lower, code.upper,
            WHOLE=out.dtype == torch.int16, TALLY=sent is not None,
            TABLE=table is not None, ROWS=gpu.ROWS, CHANNELS=gpu.CHANNELS, enable_fp_fusion=False,
        )  # fmt: skip
    return out
