"""The network that a spiking one is to follow: another one of the same model, with parameters of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import nn

from fas.surgery.parameters import swapped
from fas.surgery.replace import populations, spiking_layers

Aim = Literal["auto", "quantised", "ann"]


class Teacher:
    """The dense or the quantised network of a model, with the parameters of neurons that it has now.

    Args:
        model: a converted model.
        aim: ``quantised`` (what stage 1 has trained), ``ann``, or ``auto``: quantised after stage 1, else ann.

    Attributes:
        network: the network that it is.
    """

    def __init__(self, model: Any, aim: Aim) -> None:
        self.model = model
        self.network: Literal["quantised", "ann"]
        self.network = aim if aim != "auto" else "quantised" if model.is_trained else "ann"
        self._neurons = populations(model).values()
        kept = neuron_tensors(model) if self.network == "quantised" else []
        self._parameters = {parameter: parameter.detach().clone() for parameter in kept}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Have the model run this network while the block lasts."""
        active = [population.active for population in self._neurons]
        for population in self._neurons:
            population.active = True
        try:
            with swapped(self._parameters), self.model.simulation.using(network=self.network):
                yield
        finally:
            for population, before in zip(self._neurons, active, strict=True):
                population.active = before


def is_corrected(model: Any) -> bool:
    """Return whether biases have been corrected for some number of time steps since the last training."""
    return model.is_trained and not model.records[-1].trains


def neuron_tensors(model: nn.Module, *, bias: bool = True) -> list[nn.Parameter]:
    """Return the parameters of all neurons and, with ``bias``, the corrections of the layers after them."""
    found = [p for population in populations(model).values() for p in population.parameters()]
    return found + [layer.correction for layer in spiking_layers(model).values() if bias]
