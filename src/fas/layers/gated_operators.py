"""Normalisation, activation and softmax as gated populations, in the place of the dense modules."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fas.layers.gated import DIGITS, Gated, gated
from fas.layers.simulation import Simulation


class GatedActivation(nn.Module):
    """An activation computed by a gated population, but in the dense network.

    Its values leave in digits (``DIGITS``), so that a gated product after it (SwiGLU, GEGLU) is driven by spikes: each
    adds the other factor, shifted.

    Args:
        dense: the activation module.
        function: its gated form.
        simulation: settings of the model.
    """

    def __init__(self, dense: nn.Module, function: Gated, simulation: Simulation) -> None:
        super().__init__()
        self.function = function
        self.simulation = simulation
        # Outside the module tree: it has no parameters.
        object.__setattr__(self, "_dense", dense)

    def extra_repr(self) -> str:
        """Name the function."""
        return self.function.name

    def dense(self) -> nn.Module:
        """Return the activation that this module stands for."""
        layer: nn.Module = object.__getattribute__(self, "_dense")
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape to the same shape."""
        if self.simulation.network == "ann":
            return cast(Tensor, self.dense()(x))
        gated = self.simulation.gated
        return gated(DIGITS, gated(self.function, x))


class GatedNorm(nn.Module):
    """LayerNorm or RMSNorm from gated populations: y = (x − mean) · 1/√(mean square + ε) · gain + bias.

    Squares, square root and reciprocal are gated populations; mean and gain are synapses. The product of a value
    and the reciprocal of its row is driven by the digits of the latter (``DIGITS``): each adds the value, shifted.

    Args:
        dense: the normalisation, whose ``weight`` and ``bias`` stay parameters under their names.
        simulation: settings of the model.
        centred: whether the mean is subtracted (LayerNorm).
        plus_one: whether the gain is 1 + ``weight`` (Gemma).
        epsilon: ε.

    Source: LAS (arXiv 2505.09659), spike-equivalent LayerNorm: square, root and reciprocal by gated
    neurons, the product in difference form. Deviation: there both factors of the product change over time, here one
    waits and the digits of the other select its shifted copies.
    """

    def __init__(
        self, dense: nn.Module, simulation: Simulation, *, centred: bool, plus_one: bool, epsilon: float
    ) -> None:
        super().__init__()
        self.simulation = simulation
        self.centred, self.plus_one, self.epsilon = centred, plus_one, epsilon
        self.weight = cast(nn.Parameter, dense.weight)
        if getattr(dense, "bias", None) is not None:
            self.bias: nn.Parameter | None = cast(nn.Parameter, dense.bias)
        else:
            self.register_parameter("bias", None)
        object.__setattr__(self, "_dense", dense)

    def extra_repr(self) -> str:
        """Name what a printed model should show."""
        return f"{self.weight.shape[0]}, eps={self.epsilon}, {'layer' if self.centred else 'root mean square'}"

    def dense(self) -> nn.Module:
        """Return the normalisation that this module stands for, with the present parameters."""
        layer: nn.Module = object.__getattribute__(self, "_dense")
        layer.weight = self.weight
        if self.bias is not None:
            layer.bias = self.bias
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [*B, C] over C."""
        if self.simulation.network == "ann":
            return cast(Tensor, self.dense()(x))
        work = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.centred:
            work = work - work.mean(-1, keepdim=True)
        by = self.simulation.gated
        power = by(gated("square"), work).mean(-1, keepdim=True) + self.epsilon
        gain = 1 + self.weight if self.plus_one else self.weight
        normal = work * by(DIGITS, by(gated("reciprocal"), by(gated("square_root"), power))) * gain
        return (normal if self.bias is None else normal + self.bias).to(x.dtype)
