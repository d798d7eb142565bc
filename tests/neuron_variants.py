"""Every registered neuron of even levels, with and without sign, for tests that hold for all of them."""

import dataclasses

import pytest

from fas import registry
from fas.types import Neuron, RateNeuron


def variants() -> list[Neuron]:
    neurons: list[Neuron] = []
    for name in registry.available("neurons"):
        cls = registry.load("neurons", name)
        if "signed" in {field.name for field in dataclasses.fields(cls)}:
            neurons += [cls(signed=True), cls(signed=False)]
        else:
            neurons.append(cls())
    return [neuron for neuron in neurons if neuron.even_levels]


def label(neuron: Neuron) -> str:
    return f"{type(neuron).__name__}-{'signed' if neuron.signed else 'unsigned'}"


every = pytest.mark.parametrize("neuron", variants(), ids=label)
rate = pytest.mark.parametrize("neuron", [n for n in variants() if isinstance(n, RateNeuron)], ids=label)
