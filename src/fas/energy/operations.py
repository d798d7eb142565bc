"""Numbers of operations: at one place in a network, and all of them by place and phase."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from fas.types import Measurement

Phase = Literal["prefill", "decode"]
Reuse = Literal["none", "time", "pass"]
Order = Literal["row", "window", "output"]


@dataclass
class Operations:
    """What happened at one place: what spikes drove, then what stayed ordinary arithmetic.

    An *event* is one message of one neuron at one step. It is a spike, except where spikes are graded: there
    it carries a small integer, the number of spikes. Biases (with the constants that offset and threshold
    fold into them and into the weights) are not counted, neither here nor in the dense network.

    Attributes:
        spikes: emitted, graded ones as many as they are worth.
        events: messages sent.
        event_bits: bits of these: address of the neuron, sign and size where the code has them.
        windows: neurons times positions.
        membrane_updates: neurons times positions times steps.
        additions: events times fan-out, of spikes worth one threshold.
        shift_additions: the same of spikes that weigh powers of two by their step (bit planes).
        graded_multiply_adds: the same of graded spikes: a weight times a small integer.
        dense_multiply_adds: of the dense layers after the same inputs.
        nonzero_multiply_adds: those with a non-zero input: the activation (dense run), the count (spiking run).
        weight_words: fetched, one per addition or multiply-add (reuse ``none``).
        weight_words_time: fetched if a row of weights is kept for all steps of a position (reuse ``time``).
        weight_words_pass: fetched if it is kept for all positions of one forward pass (reuse ``pass``).
        outputs: sums that layers and products deliver; of online spikes, those of every step.
        spike_bits: of events that are read again for every output that they are added to (order ``output``).
        map_bits: the same of the part that does not grow with the spikes.
        multiply_adds: of dense layers, convolutions, attention products and normalisation (two per value).
        multiplications: gates, rotary embeddings, normalisation of softmax.
        float_additions: residual connections and the like.
        exponentials: of softmax, of pairs that the mask lets through.
        activations: evaluations of GELU, SiLU, tanh and their kind.
        roots: reciprocal roots, one per normalised position.
        divisions: reciprocals, one per row of a softmax.
    """

    spikes: int = 0
    events: int = 0
    event_bits: int = 0
    windows: int = 0
    membrane_updates: int = 0
    additions: int = 0
    shift_additions: int = 0
    graded_multiply_adds: int = 0
    dense_multiply_adds: int = 0
    nonzero_multiply_adds: int = 0
    weight_words: int = 0
    weight_words_time: int = 0
    weight_words_pass: int = 0
    outputs: int = 0
    spike_bits: int = 0
    map_bits: int = 0
    multiply_adds: int = 0
    multiplications: int = 0
    float_additions: int = 0
    exponentials: int = 0
    activations: int = 0
    roots: int = 0
    divisions: int = 0

    def __iadd__(self, other: Operations) -> Self:
        """Add field by field."""
        for entry in fields(self):
            setattr(self, entry.name, getattr(self, entry.name) + getattr(other, entry.name))
        return self

    @property
    def synaptic(self) -> int:
        """Operations that spikes caused: additions of any kind."""
        return self.additions + self.shift_additions + self.graded_multiply_adds

    @property
    def evaluations(self) -> int:
        """Evaluations of non-linear functions."""
        return self.exponentials + self.activations + self.roots + self.divisions

    def words(self, reuse: Reuse) -> int:
        """Return the weight words fetched under an assumption on reuse."""
        return {"none": self.weight_words, "time": self.weight_words_time, "pass": self.weight_words_pass}[reuse]


@dataclass
class Counts:
    """Operations by phase and place, over everything that ran.

    A pass that finds keys and values in its cache is decoding, any other is prefill.

    Attributes:
        places: operations by phase and dotted name: sites, and the dense layers after them, under the name of the
            site, everything else under that of the module that computed it.
        tokens: positions of text processed by phase (images, for a model of images).
        uncounted: products that this library does not know how to count, by name and number of calls.
        online: whether spikes were sent while input arrived, and not when its window was over.
    """

    places: dict[tuple[Phase, str], Operations] = field(default_factory=dict)
    tokens: dict[Phase, int] = field(default_factory=dict)
    uncounted: dict[str, int] = field(default_factory=dict)
    online: bool = False

    def at(self, phase: Phase, path: str) -> Operations:
        """Return the entry of a place, made if need be."""
        return self.places.setdefault((phase, path), Operations())

    def of(self, phase: Phase) -> dict[str, Operations]:
        """Return the operations of a phase by place."""
        return {path: found for (when, path), found in self.places.items() if when == phase}

    def total(self, phase: Phase | None = None) -> Operations:
        """Return the sum over places, of one phase or of both."""
        whole = Operations()
        for (of, _), found in self.places.items():
            if phase in (None, of):
                whole += found
        return whole

    def by_place(self) -> dict[str, Operations]:
        """Return the sum over phases by place, in the order in which the places first ran."""
        merged: dict[str, Operations] = {}
        for (_, path), found in self.places.items():
            merged.setdefault(path, Operations()).__iadd__(found)
        return merged

    @property
    def phases(self) -> list[Phase]:
        """Phases that occurred."""
        return list(self.tokens)

    def measurements(self, **conditions: Any) -> Iterator[Measurement]:
        """Yield every count that is not zero as a row: per phase, place and token."""
        for (phase, path), found in self.places.items():
            for entry in fields(found):
                value = getattr(found, entry.name)
                if value:
                    stated = {**conditions, "phase": phase, "place": path, "tokens": self.tokens[phase]}
                    unit = f"{_unit(entry.name)}/token"
                    yield Measurement(entry.name, value / self.tokens[phase], unit, conditions=stated)


def _unit(name: str) -> str:
    if name.endswith("_bits"):
        return "bit"
    return "words" if name.startswith("weight_words") else name
