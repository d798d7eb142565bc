"""What all layers that spikes drive have in common, in the place and under the names of the dense one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn

from fas.layers.population import Population


class SpikingLayer(nn.Module, ABC):
    """A linear map of what a population sends, with the very parameters of the dense layer and a correction δ.

    Weight and bias keep their names, so checkpoints of the dense model, tied weights and optimiser groups
    fit as before. δ (``correction``, out channels, float32) is the mean error that calibration pushes
    into the bias; the dense network does not see it.

    Args:
        dense: the dense layer.
        population: the neurons in front.
        outputs: number of output channels.
        owner: whether this layer holds the population's parameters; another layer of the site does else.
    """

    def __init__(self, dense: nn.Module, population: Population, outputs: int, *, owner: bool = True) -> None:
        super().__init__()
        self.correction = nn.Parameter(torch.zeros(outputs, dtype=torch.float32, device=self._hold(dense)))
        if owner:
            self.neuron = population
        # A plain reference: one set of parameters, however many layers read it.
        self.population: Population
        object.__setattr__(self, "population", population)
        object.__setattr__(self, "_dense", dense)

    def _hold(self, dense: nn.Module) -> torch.device:
        """Take weight and bias of the dense layer, and say where they lie."""
        self.weight = cast(nn.Parameter, dense.weight)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", cast("nn.Parameter | None", dense.bias))
        return self.weight.device

    def dense(self) -> Any:
        """Return the dense layer that this one stands for, with the present weight and bias."""
        layer: nn.Module = object.__getattribute__(self, "_dense")
        layer.weight = self.weight
        layer.register_parameter("bias", self.bias)
        return layer

    @torch.no_grad()
    def push_error(self, shift: Tensor, *, more: bool = False) -> None:
        """Put the response to a mean error of the input into the correction of the bias.

        Args:
            shift: mean of (expected − sent) per input channel [in].
            more: add it to the correction that is there.
        """
        response = self.response(shift)
        self.correction.copy_(self.correction + response if more else response)

    @abstractmethod
    def response(self, shift: Tensor) -> Tensor:
        """Return what a constant input [in] makes of each output channel [out], without the bias."""
