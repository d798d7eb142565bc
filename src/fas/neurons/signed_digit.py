"""Neuron that sends its count as few signed powers of two: the nearest one first, then that of what is left."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fas.checks import check_whole
from fas.types import Neuron

# float32 holds whole numbers up to 2^24.
_LARGEST = 2**24
# Counts up to which what becomes of each is looked up.
_TABLE = 2**16


@dataclass(frozen=True)
class SignedDigit(Neuron):
    """Signed-digit neuron: N_T = Σ_t s_t · w_t with s_t ∈ {−1, 0, +1}, after the window of its input.

    The weight w_t of a spike falls to a third after each of the first ``wide`` steps, and to a half after each of the
    others, down to 1: at T = 8 it is 648, 216, 72, 24, 8, 4, 2, 1. With r what is left of the count, the neuron fires
    with the sign of r where

        ``|r|`` ≥ max(3/4 · w_t, (w_t + λ/w_t) / 2),

    of a wide step where ``|r|`` is above w_t/2: to send w_t brings r nearest to zero, and lowers the squared error r²
    by at least the price λ. After ``max_spikes`` spikes it is silent. Without wide steps this rule is optimal: no other
    choice of at most ``max_spikes`` digits has a smaller (n − N_T)² + λ · spikes. Without limit and price every count
    is exact; among powers of two it takes as few spikes as there can be, on the average a third of the steps (bit
    planes: half; balanced ternary: two thirds). With a limit of k the error is relative to the value, as that of a
    number with k significant digits.

    Activations of large models are small nearly always, and at times a hundred times as large: low digits in base 2
    are sent most of the time and cost the fewest spikes there, high ones in base 3 are hardly ever sent and reach
    further (975 levels to either side in 8 steps, where base 2 has 255). All steps wide are balanced ternary.

    Without ``signed`` the count is not negative, though single spikes may be: 3 is +4 −1. A layer downstream doubles
    or triples its sum (a shift, at most an addition more) and adds. Compare with other codes by levels and spikes,
    never by T alone. A digit is known only when the whole input is, so the code needs the layerwise schedule.

    Attributes:
        max_spikes: k, most digits that are not zero; 0 for no limit.
        price: λ ≥ 0, what a spike must lower the squared error by, in squared levels.
        wide: steps in front whose weight is three times that of the step after them; at most T − 1 count.

    Raises:
        ValueError: a limit, price or number of wide steps below 0; counts beyond 2^24, which float32 cannot hold.

    Source: Reitwiesner 1960 (Binary arithmetic, Advances in Computers 1): canonical signed digits. Deviation: those
    never have two neighbours that are not zero, which takes a threshold of 2/3 · w; with 3/4 · w a count has as many
    spikes, neighbours may fire (11 is 8 + 4 − 1 and not 16 − 4 − 1), T digits reach 2^T − 1 and not 2^{T+1}/3, and the
    rule stays optimal under a limit and a price.
    """

    signed: bool = True
    max_spikes: int = 0
    price: float = 0.0
    wide: int = 4
    exact_when: ClassVar[Literal["even", "any"]] = "any"
    recursion: ClassVar[Literal["table"]] = "table"
    # A language model of 135 million parameters sends 1.9 spikes then, and loses 0.3 % of perplexity.
    spike_price: ClassVar[float] = 0.006

    def __post_init__(self) -> None:
        check_whole("max_spikes", self.max_spikes, 0)
        check_whole("wide", self.wide, 0)
        if not 0 <= self.price < float("inf"):
            raise ValueError(f"price is {self.price!r}; expected squared levels per spike, a number of at least 0")

    @property
    def even_levels(self) -> bool:
        """Whether every whole number is a count: a spike of weight 1 is worth 1."""
        return not self.max_spikes and self.price <= 1

    def weights(self, timesteps: int) -> tuple[int, ...]:
        """Return w_1 … w_T."""
        wide = min(self.wide, timesteps - 1)
        top = 2 ** (timesteps - wide - 1)
        return (*(top * 3 ** (wide - t) for t in range(wide)), *(top >> t for t in range(timesteps - wide)))

    def resolution(self, timesteps: int) -> int:
        """Return the largest count: the first k digits."""
        most = sum(self.weights(timesteps)[: self.max_spikes or timesteps])
        if most > _LARGEST:
            raise ValueError(
                f"timesteps is {timesteps}: counts of signed_digit reach {most} then, and float32 holds whole numbers "
                "up to 2^24; 8 steps have 1,951 levels"
            )
        return most

    def levels(self, timesteps: int) -> int:
        """Return how many different counts there are."""
        if self.even_levels:
            return super().levels(timesteps)
        positive = len(_settled(self, timesteps).unique())
        return 2 * positive - 1 if self.signed else positive

    def settle(self, levels: Tensor, timesteps: int) -> Tensor:
        """Return what the digits add up to: the nearest number that they can say, at a price one of fewer spikes."""
        count = levels.clamp(*self.bounds(timesteps))
        if self.even_levels:
            return count
        if torch.compiler.is_compiling() or self.resolution(timesteps) > _TABLE:
            return self._sent(count, timesteps)[-1]
        # Values that are not numbers have no place in a table, and stay what they are.
        place = count.abs().nan_to_num_(0).long()
        found = _settled(self, timesteps).to(count.device, count.dtype)[place]
        return torch.where(count.isnan(), count, found.copysign(count))

    def window(self, drive: Tensor, v_init: Tensor, timesteps: int) -> Tensor:
        """Return the value of the digits sent up to each step, most significant first."""
        count = (drive * self.resolution(timesteps) + v_init).floor().clamp(*self.bounds(timesteps))
        return self._sent(count, timesteps)

    def spikes(self, count: Tensor, timesteps: int) -> Tensor:
        """Return the number of digits that are not zero."""
        if torch.compiler.is_compiling() or self.resolution(timesteps) > _TABLE:
            return self._fired(count, timesteps)
        return _numbers(self.wide, timesteps).to(count.device, count.dtype)[count.abs().nan_to_num_(0).long()]

    def _fired(self, count: Tensor, timesteps: int) -> Tensor:
        """Count the digits step by step."""
        before = torch.zeros_like(count)
        fired = torch.zeros_like(count)
        for after in SignedDigit(wide=self.wide)._sent(count, timesteps):
            fired += after != before
            before = after
        return fired

    def _sent(self, count: Tensor, timesteps: int) -> Tensor:
        """Follow the rule step by step from a count within bounds: the sum so far, [T, *B, C]."""
        total, fired, sums = torch.zeros_like(count), torch.zeros_like(count), []
        for t, weight in enumerate(self.weights(timesteps)):
            left = count - total
            # Whole numbers above half of the weight begin half a level above it.
            near = (weight + 1) / 2 if t < min(self.wide, timesteps - 1) else 0.75 * weight
            fires = left.abs() >= max(near, (weight + self.price / weight) / 2)
            if self.max_spikes:
                fires &= fired < self.max_spikes
                fired += fires
            total = total + fires * left.sign() * weight
            sums.append(total)
        return torch.stack(sums)


@functools.lru_cache(maxsize=64)
# What is kept must serve runs with and without gradients.
@torch.inference_mode(False)
@torch.no_grad()
def _settled(neuron: SignedDigit, timesteps: int) -> Tensor:
    """Return what becomes of every count from 0 to the largest, float32."""
    counts = torch.arange(neuron.resolution(timesteps) + 1, dtype=torch.float32)
    return neuron._sent(counts, timesteps)[-1]


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
@torch.no_grad()
def _numbers(wide: int, timesteps: int) -> Tensor:
    """Return the spikes of every count from 0 to the largest, float32."""
    neuron = SignedDigit(wide=wide)
    return neuron._fired(torch.arange(neuron.resolution(timesteps) + 1, dtype=torch.float32), timesteps)
