"""A linear layer that spikes drive, in the place and under the names of the dense one."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fas.layers.population import Population


class SpikingLinear(nn.Module):
    r"""y = W · (mean spikes) + b + δ, with W and b the very parameters of the dense layer.

    Weight and bias keep their names, so checkpoints of the dense model, tied weights and optimiser groups
    fit as before. δ (``correction``, out features, float32) is the mean error that calibration pushes
    into the bias; the ANN and the quantised network before calibration do not see it while it is zero.

    Args:
        dense: ``nn.Linear``, or a module with a transposed weight [in, out] (GPT-2's ``Conv1D``).
        population: the neurons in front.
        owner: whether this layer holds the population's parameters; another layer of the site does else.
    """

    def __init__(self, dense: nn.Module, population: Population, *, owner: bool = True) -> None:
        super().__init__()
        self.transposed = not isinstance(dense, nn.Linear)
        weight = cast(nn.Parameter, dense.weight)
        self.in_features, self.out_features = (
            (weight.shape[0], weight.shape[1]) if self.transposed else (weight.shape[1], weight.shape[0])
        )
        self.weight = weight
        self.bias: nn.Parameter | None
        self.register_parameter("bias", cast("nn.Parameter | None", dense.bias))
        self.correction = nn.Parameter(torch.zeros(self.out_features, dtype=torch.float32, device=weight.device))
        if owner:
            self.neuron = population
        # A plain reference: one set of parameters, however many layers read it.
        self.population: Population
        object.__setattr__(self, "population", population)
        object.__setattr__(self, "_dense", dense)

    def extra_repr(self) -> str:
        """Name what a printed model should show."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, site={self.population.path}"

    def dense(self) -> nn.Module:
        """Return the dense layer that this one stands for, with the present weight and bias."""
        layer: nn.Module = object.__getattribute__(self, "_dense")
        layer.weight = self.weight
        layer.register_parameter("bias", self.bias)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Map [*B, in] to [*B, out] through the spikes of the population."""
        simulation = self.population.simulation
        signal = self.population(x)
        if simulation.network == "ann" or not self.population.active:
            # The dense module itself: bit-equal to the model before conversion.
            output: Tensor = self.dense()(signal)
            return output
        weight = self.weight.T if self.transposed else self.weight
        bias = self.correction.to(x.dtype)
        bias = bias if self.bias is None else self.bias + bias
        if signal.ndim == x.ndim:
            return functional.linear(signal, weight, bias)
        return functional.linear(signal, weight).mean(0) + bias
