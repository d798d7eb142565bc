"""What a kernel offers: one module of ``fas.kernels`` with these names."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fas.kernels.interface.code import Code, State


class Backend(Protocol):
    """A kernel. What each operation computes is said here; ``fas.kernels.naive`` does it in plain loops.

    Every operation that makes spikes adds their number by channel to ``sent`` [C], int64, if it is given; a graded
    spike counts as many. The gain of each token [*B, 1] goes to ``gain`` where there is one and it is given.

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
        """Return N_T · unit + μ for even input x [*B, C]: what the layers downstream receive."""

    def counts(self, x: Tensor, code: Code, sent: Tensor | None = None, gain: Tensor | None = None) -> Tensor:
        """Return N_T for even input x [*B, C], int16."""

    def decode(self, counts: Tensor, code: Code, dtype: torch.dtype, gain: Tensor | None = None) -> Tensor:
        """Return N · unit + μ for whole counts [*B, C], divided by the gain of the token."""

    def emit(self, x: Tensor, code: Code, sent: Tensor | None = None) -> Tensor:
        """Return what the layers receive at each step [T, *B, C]: s_t · step_unit + μ, for even input x [*B, C]."""

    def pack(self, x: Tensor, code: Code, gain: Tensor | None = None) -> Tensor:
        """Return the spikes of even input x [*B, C], one bit each: uint8 [planes, bytes, *B, C].

        Plane 0 holds positive spikes, plane 1 negative ones where the code has a sign. The spike of step t is bit
        t − 1, counted from the low end of byte 0.
        """

    def unpack(self, bits: Tensor, code: Code, sent: Tensor | None = None) -> Tensor:
        """Return the counts of packed spikes, int16 [*B, C]: number of ones, or digits put together."""

    def scan(
        self, x: Tensor, code: Code, *, first: int, difference: bool, state: State | None = None,
        sent: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Run neurons over steps of uneven input.

        Args:
            x: [n, *B, C]: running means over time (``difference``) or the values of each step.
            code: parameters.
            first: number of the first step in ``x``, from 1.
            difference: which of the two ``x`` is; the answer is of the same kind.
            state: Σ x and N before the first step; zero if None.
            sent: spikes by channel so far.

        Returns:
            What the layers receive, N_t θ/t + μ or s_t θ + μ [n, *B, C]; Σ x and N after the last step [*B, C].
        """

    def spikes(
        self, x: Tensor, code: Code, *, first: int, difference: bool, state: State | None = None,
        sent: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Do as ``scan`` with the spikes s_t [n, *B, C] for an answer, int8; not for graded ones beyond ±127."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return x Wᵀ + b: x [*B, in], W [out, in]."""

    def event_linear(self, counts: Tensor, unit: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return b + Σ_c n_c unit_c W_c over the channels that have spiked: n [in] int16, W [in, out]."""

    def spike_linear(
        self, spikes: Tensor, threshold: Tensor, weight: Tensor, bias: Tensor, *, first: int, difference: bool
    ) -> Tensor:
        """Return b + Σ_c s_c θ_c W_c of every step, or of the running mean (Σ_{i≤t} s_i)/t in the place of s.

        Args:
            spikes: [n, *B, in], int8: −1, 0 or 1.
            threshold: [in].
            weight: [out, in], contiguous as it is or transposed.
            bias: [out].
            first: number of the first step, from 1; nothing has been sent before.
            difference: whether the running mean is meant.
        """

    def integer_linear(
        self,
        counts: Tensor,
        weight: Tensor,
        scale: Tensor,
        rest: Tensor,
        gain: Tensor | None,
        bias: Tensor,
        largest: int,
    ) -> Tensor:
        """Return ((n · qᵀ) · scale + rest)/gain + bias: n [rows, in] int16 up to ``largest``, q [out, in] int8."""
