"""Every registered neuron, with and without sign, for tests that hold for all of them."""

import dataclasses

import pytest

from fas import registry
from fas.neurons.signed_digit import SignedDigit
from fas.types import Neuron, RateNeuron


def codes() -> list[Neuron]:
    """Return all neurons, those whose levels are uneven too."""
    neurons: list[Neuron] = []
    for name in registry.available("neurons"):
        cls = registry.load("neurons", name)
        if "signed" in {field.name for field in dataclasses.fields(cls)}:
            neurons += [cls(signed=True), cls(signed=False)]
        else:
            neurons.append(cls())
    limited = SignedDigit(max_spikes=2), SignedDigit(signed=False, max_spikes=3, price=4.0), SignedDigit(wide=0)
    return [*neurons, *limited]


def variants() -> list[Neuron]:
    """Return those of which every whole number is a count, at the same thresholds for every token."""
    return [neuron for neuron in codes() if neuron.even_levels and not neuron.adapts]


def label(neuron: Neuron) -> str:
    own = [f"{f.name}={getattr(neuron, f.name):g}" for f in dataclasses.fields(neuron) if f.name != "signed"]
    changed = [text for text in own if not text.endswith("=0")]
    return "-".join([type(neuron).__name__, "signed" if neuron.signed else "unsigned", *changed])


every = pytest.mark.parametrize("neuron", variants(), ids=label)
rate = pytest.mark.parametrize("neuron", [n for n in variants() if isinstance(n, RateNeuron)], ids=label)
