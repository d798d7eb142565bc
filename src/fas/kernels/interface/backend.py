"""What a kernel offers: one module of ``fas.kernels`` with these names."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fas.kernels.interface.code import Code

OPS = (
    "encode", "counts", "decode", "emit", "pack", "unpack", "scan", "spikes",
    "linear", "event_linear", "spike_linear", "integer_linear",
)  # fmt: skip
"""The operations. A kernel has any of them; torch runs those that it leaves out."""


class Backend(Protocol):
    """A kernel. ``fas.kernels.naive`` says what each operation computes.

    Attributes:
        name: what it is called in ``model.kernels`` and in the environment variable FAS_KERNELS.
        SPARSE: share of channels that spike below which selecting rows of the weight beats reading all of it.
        TABLE_ROWS: rows of spikes from which ``spike_linear`` beats a dense product of what they stand for.
    """

    name: str
    SPARSE: float
    TABLE_ROWS: float

    def supports(self, op: str, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
        """Return whether an operation runs on tensors like these, and why not."""

    def encode(self, x: Tensor, code: Code, sent: Tensor | None = None) -> Tensor:
        """Return N_T · unit + μ for even input x [*B, C]."""

    def counts(self, x: Tensor, code: Code, sent: Tensor | None = None) -> Tensor:
        """Return N_T for even input x [*B, C], int16."""

    def decode(self, counts: Tensor, code: Code, dtype: torch.dtype) -> Tensor:
        """Return N · unit + μ for whole counts [*B, C]."""

    def emit(self, x: Tensor, code: Code, sent: Tensor | None = None) -> Tensor:
        """Return s_t · step_unit + μ of every step [T, *B, C] for even input x [*B, C]."""

    def pack(self, x: Tensor, code: Code) -> Tensor:
        """Return the spikes of even input x [*B, C], one bit each: uint8 [planes, bytes, *B, C]."""

    def unpack(self, bits: Tensor, code: Code, sent: Tensor | None = None) -> Tensor:
        """Return the counts of packed spikes, int16 [*B, C]."""

    def scan(
        self,
        x: Tensor,
        code: Code,
        *,
        first: int,
        difference: bool,
        total: Tensor | None = None,
        count: Tensor | None = None,
        sent: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run neurons over steps of uneven input x [n, *B, C]: what layers receive, Σ x and N after the last."""

    def spikes(
        self,
        x: Tensor,
        code: Code,
        *,
        first: int,
        difference: bool,
        total: Tensor | None = None,
        count: Tensor | None = None,
        sent: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Do the same with the spikes s_t [n, *B, C] for an answer, int8."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return x Wᵀ + b."""

    def event_linear(self, counts: Tensor, unit: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return b + Σ_c n_c unit_c W_c over the channels that have spiked: n [in] int16, W [in, out]."""

    def spike_linear(
        self, spikes: Tensor, threshold: Tensor, weight: Tensor, bias: Tensor, *, first: int, difference: bool
    ) -> Tensor:
        """Return the response to spikes [n, *B, in]."""

    def integer_linear(self, counts: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, largest: int) -> Tensor:
        """Return (counts · qᵀ) · scale + bias."""
