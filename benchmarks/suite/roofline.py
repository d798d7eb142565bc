"""What the machine can do at best: bytes per second from memory, multiply-adds per second, and what follows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.suite.interleave import Prepare, interleaved


@dataclass(frozen=True)
class Roofline:
    """Limits of one machine, measured.

    Attributes:
        read: bytes per second that a sum over a large array reads.
        copy: bytes per second, read and written together, of a copy.
        flops: floating-point operations per second of a large float32 matrix product; a multiply-add is two.
    """

    read: float
    copy: float
    flops: float

    def seconds(self, flops: float, bytes_read: float) -> float:
        """Return the time below which no pass with so much work can come (Williams et al. 2009)."""
        return max(flops / self.flops, bytes_read / self.read)


def measure(device: torch.device, *, megabytes: int = 256, side: int = 1536, rounds: int = 5) -> Roofline:
    """Measure the limits with the present number of threads, each by the best of several rounds.

    Args:
        device: where.
        megabytes: size of the array, several times the last cache.
        side: of the square matrices.
        rounds: how often.
    """
    array = torch.ones(megabytes * 2**20 // 4, device=device)
    other = torch.empty_like(array)
    left, right = torch.randn(2, side, side, device=device)

    def always(run: object) -> Prepare:
        return lambda: run  # type: ignore[return-value]

    found = interleaved(
        {
            "read": always(lambda: array.sum()),
            "copy": always(lambda: other.copy_(array)),
            "flops": always(lambda: left @ right),
        },
        rounds=rounds,
        synchronise=synchroniser(device),
    )
    size = array.numel() * array.element_size()
    # A limit is what can be reached: the fastest round counts.
    read, copy, product = (min(found[name].seconds) for name in ("read", "copy", "flops"))
    return Roofline(size / read, 2 * size / copy, 2 * side**3 / product)


def synchroniser(device: torch.device):  # type: ignore[no-untyped-def]
    """Return what waits until a device has finished; a CPU always has."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
