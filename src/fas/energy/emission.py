"""What the neurons of one site sent in one call, and what it sets off after them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fas.energy.operations import Operations
from fas.types import Neuron, Schedule

Kind = Literal["additions", "shift_additions", "graded_multiply_adds"]


@dataclass(frozen=True)
class Code:
    """How a neuron model speaks.

    Attributes:
        kind: what an event makes of a weight: adds it (a spike worth one threshold), adds it shifted (a digit:
            the spike of step t weighs a power of two or three), or multiplies it by a small integer (a graded spike).
        payload: bits of an event beside its address: sign, size.
    """

    kind: Kind
    payload: int

    @classmethod
    def of(cls, neuron: Neuron, timesteps: int, schedule: Schedule) -> Code:
        """Return the code of a neuron from what it declares."""
        sign = int(sends_both_signs(neuron, schedule))
        if neuron.emission == "graded":
            low, high = neuron.bounds(timesteps)
            return cls("graded_multiply_adds", bits(high - low) + sign)
        return cls("shift_additions" if neuron.emission == "digits" else "additions", sign)


def sends_both_signs(neuron: Neuron, schedule: Schedule) -> bool:
    """Whether spikes have a sign: layerwise, input is even over time and a rate code never takes a spike back."""
    return neuron.signed or (neuron.takes_back and (neuron.emission == "digits" or schedule == "online"))


def bits(values: int) -> int:
    """⌈log2 n⌉, the bits that tell n values apart."""
    return max(0, values - 1).bit_length()


@dataclass(frozen=True)
class Emission:
    """Spikes of one call of a site.

    Attributes:
        spikes: after each simulated step [n, *B, C], or over the window [1, *B, C].
        code: of the neurons.
        steps: time steps that ``spikes`` stands for.
        before: neurons [*B, C] that have fired in earlier calls of an unfinished window; None if it begins.
    """

    spikes: Tensor
    code: Code
    steps: int
    before: Tensor | None = None

    def at(self, positions: slice) -> Emission:
        """Return the part of some positions, the dimension before the last."""
        before = None if self.before is None else self.before[..., positions, :]
        return replace(self, spikes=self.spikes[..., positions, :], before=before)

    @property
    def events(self) -> Tensor:
        """Messages of every neuron [*B, C], float64."""
        sent = self.spikes.sign() if self.code.kind == "graded_multiply_adds" else self.spikes
        return sent.sum(0, dtype=torch.float64)

    @property
    def fired(self) -> Tensor:
        """Neurons [*B, C] whose window is no longer silent."""
        now = (self.spikes > 0).any(0)
        return now if self.before is None else now | self.before

    @property
    def newly(self) -> Tensor:
        """Neurons that fire for the first time in their window, float64."""
        now = self.fired
        return (now if self.before is None else now & ~self.before).double()

    @property
    def neurons(self) -> int:
        """Neurons times positions."""
        return self.spikes[0].numel()

    def sent(self, found: Operations, addresses: int) -> None:
        """Count what the neurons themselves did; an address tells so many of them apart."""
        events = int(self.events.sum())
        found.spikes += int(self.spikes.sum(dtype=torch.float64))
        found.events += events
        found.event_bits += events * (bits(addresses) + self.code.payload)
        if self.before is None:
            found.windows += self.neurons
        found.membrane_updates += self.neurons * self.steps

    def caused(
        self, found: Operations, fan_out: int | Tensor, *, addresses: int, words: int | None, dense: int
    ) -> None:
        """Count what the spikes set off.

        Whoever finishes one output before the next reads all spikes again for each. They may lie there as a list of
        events, as a map with a place for every neuron and step, or as a map of the neurons that fire behind one bit for
        each: the form that is the shortest is counted.

        Args:
            found: the entry of the site.
            fan_out: additions per event, a number or one per neuron [*B, C].
            addresses: neurons that an address must tell apart.
            words: entries of what an event selects from, if it is not a weight matrix with a row per channel.
            dense: multiply-adds of the dense network in the same place.
        """
        additions = int((self.events * fan_out).sum())
        once = int((self.newly * fan_out).sum())
        setattr(found, self.code.kind, getattr(found, self.code.kind) + additions)
        found.weight_words += additions
        found.weight_words_time += once
        places, firing = self.steps * (1 + self.code.payload), int((self.fired * fan_out).sum())
        listed = additions * (bits(addresses) + self.code.payload)
        spikes, fixed = min((listed, 0), (0, dense * places), (firing * places, dense), key=sum)
        found.spike_bits += spikes
        found.map_bits += fixed
        if words is None:
            assert isinstance(fan_out, int)
            words = int((self.spikes > 0).flatten(0, -2).any(0).sum()) * fan_out
        found.weight_words_pass += words
        if self.before is None:
            found.dense_multiply_adds += dense
        found.nonzero_multiply_adds += once

    def kept(self, found: Operations) -> None:
        """Count one addition per event, into what later events select from."""
        setattr(found, self.code.kind, getattr(found, self.code.kind) + int(self.events.sum()))
        found.outputs += self.neurons
