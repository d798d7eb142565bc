"""What becomes of every count of a neuron that sends digits, made once by the neuron's own methods."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from fas.types import Neuron

# Counts are 16-bit whole numbers where they are held as such.
LARGEST = 2**15 - 1


@dataclass(frozen=True, eq=False)
class Table:
    """What becomes of every count n = lower … upper of a neuron that sends digits after its input.

    Attributes:
        lower: smallest count.
        settled: N_T [n], int16: n itself, or the nearest count that there is.
        spikes: how many spikes it takes [n], uint8.
        after: N_t [T, n], int16.
        even: whether N_T is n for every count.
        worth: what a spike of step t is worth [T]; None if that depends on the count.
    """

    lower: int
    settled: Tensor
    spikes: Tensor
    after: Tensor
    even: bool
    worth: tuple[int, ...] | None

    def place(self, counts: Tensor) -> Tensor:
        """Return where counts within bounds stand, int64; what is not a number stands first."""
        return counts.nan_to_num(self.lower).long() - self.lower

    def settle(self, counts: Tensor) -> Tensor:
        """Return N_T for counts within bounds; what is not a number stays so."""
        return counts if self.even else counts + self.of(self.change, counts)

    def of(self, entries: Tensor, counts: Tensor) -> Tensor:
        """Return the entries of counts, in their dtype."""
        return entries[self.place(counts)].to(counts.dtype)

    @functools.cached_property
    def change(self) -> Tensor:
        """N_T − n, int16."""
        return self.settled - torch.arange(self.lower, self.lower + len(self.settled)).to(self.settled)

    @functools.cached_property
    def emitted(self) -> Tensor:
        """N_t − N_{t−1} [T, n], int16."""
        return torch.diff(self.after, dim=0, prepend=torch.zeros_like(self.after[:1]))

    @functools.cached_property
    def planes(self) -> int:
        """Planes of packed spikes: one more where they have a sign, which they may where counts have none."""
        return 2 if bool((self.emitted < 0).any()) else 1

    @functools.cached_property
    def bits(self) -> Tensor:
        """Spikes, one bit each [planes, bytes, n], uint8; see ``Backend.pack``."""
        out = torch.zeros(self.planes, -(-len(self.after) // 8), len(self.settled)).to(self.spikes)
        for t, sent in enumerate(self.emitted):
            for plane, fired in zip(out, (sent > 0, sent < 0), strict=False):
                plane[t // 8] |= fired.to(torch.uint8) << t % 8
        return out

    @functools.cached_property
    def worth_of_bytes(self) -> Tensor:
        """What a byte of packed spikes stands for, by plane and byte, and how many bits of it are set [m + 1, 256]."""
        assert self.worth is not None
        bits = torch.arange(256).unsqueeze(1) >> torch.arange(8) & 1
        octets, ones = [], bits.sum(1)
        for first in range(0, len(self.worth), 8):
            worth = torch.tensor(self.worth[first : first + 8])
            octets.append((bits[:, : len(worth)] * worth).sum(1))
        return torch.stack([*octets, *(-octet for octet in octets if self.planes == 2), ones]).to(self.settled)


@functools.lru_cache(maxsize=64)
# What is kept must serve runs with and without gradients.
@torch.inference_mode(False)
@torch.no_grad()
def table_of(neuron: Neuron, timesteps: int, device: torch.device) -> Table | None:
    """Return the table of a neuron, made by its own methods; None where 16 bits do not hold its counts."""
    lower, upper = neuron.bounds(timesteps)
    if upper > LARGEST:
        return None
    counts = torch.arange(lower, upper + 1, dtype=torch.float64)
    after = neuron.window(counts / upper, counts.new_tensor(0.5), timesteps)
    sizes = [step.abs() for step in torch.diff(after, dim=0, prepend=torch.zeros_like(after[:1]))]
    largest = [size.amax() for size in sizes]
    by_step = all(bool(((size == 0) | (size == most)).all()) for size, most in zip(sizes, largest, strict=True))
    return Table(
        lower,
        after[-1].to(device, torch.int16),
        neuron.spikes(after[-1], timesteps).to(device, torch.uint8),
        after.to(device, torch.int16),
        neuron.even_levels,
        tuple(map(int, largest)) if by_step else None,
    )
