"""A convolution that spikes drive, in the place and under the names of the dense one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fas.errors import FASError
from fas.layers.once import Once
from fas.layers.population import Population
from fas.layers.spiking_layer import SpikingLayer


class SpikingConv2d(SpikingLayer):
    r"""y = W ∗ (mean spikes) + b + δ, with W and b the very parameters of the dense convolution.

    The population has one threshold per input channel, shared by all positions. Padding is zero as in the dense
    layer: a padded position sends no spikes, and no offset μ either. Stride, dilation, groups and the forward of a
    subclass are those of the dense layer.

    Args:
        dense: ``nn.Conv2d`` or a subclass.
        population: the neurons in front, over the last dimension of [*B, H, W, C].
        view: gives the layers of one site the same channels-last view of their input.
        owner: whether this layer holds the population's parameters; another layer of the site does else.
    """

    def __init__(
        self, dense: nn.Conv2d, population: Population, view: Once | None = None, *, owner: bool = True
    ) -> None:
        super().__init__(dense, population, dense.out_channels, owner=owner)
        self.in_channels, self.out_channels = dense.in_channels, dense.out_channels
        self._view = Once() if view is None else view

    def extra_repr(self) -> str:
        """Name what a printed model should show."""
        return f"{self.in_channels}, {self.out_channels}, site={self.population.path}"

    def forward(self, x: Tensor) -> Tensor:
        """Map [*B, in, H, W] to [*B, out, H', W'] through the spikes of the population."""
        population = self.population
        simulation = population.simulation
        if simulation.network == "snn" and simulation.weights == "int8":
            self.integers()
        # A population knows a tensor by its identity: all layers of the site must hand it the same view.
        signal = population(self._view(x, "channels last", lambda x: x.movedim(-3, -1)), "mean").movedim(-1, -3)
        output: Tensor = self.dense()(signal)
        if simulation.network == "ann" or not population.active:
            return output
        return output + self.correction.to(output.dtype).view(-1, 1, 1)

    def response(self, shift: Tensor) -> Tensor:
        """Return Σ_c Σ_k W[o, c, k] · shift_c, what a position away from the padded border receives."""
        dense = self.dense()
        # The middle of a map this large sees no padding, whatever the stride and the layer's own forward.
        shape = zip(dense.kernel_size, dense.dilation, dense.stride, strict=True)
        size = [3 * (dilation * (width - 1) + 1) + 2 * stride for width, dilation, stride in shape]
        constant = shift.to(self.weight.dtype).view(1, -1, 1, 1).expand(1, -1, *size)
        response: Tensor = dense(constant) - dense(torch.zeros_like(constant))
        return response[0, :, response.shape[-2] // 2, response.shape[-1] // 2]

    def integers(self) -> Any:
        """Refuse 8-bit weights.

        Raises:
            FASError: always; they exist for linear layers.
        """
        raise FASError(
            f"weights='int8' multiplies counts with the weights of linear layers, but {self.population.path} is a "
            "convolution: set model.weights = 'float'"
        )

    def reset(self) -> None:
        """Forget an input that not every layer of the site has read."""
        self._view.reset()


def convolution_fan_out(dense: nn.Module, channels: int, height: int, width: int) -> Tensor:
    """Return how many products every input of a convolution takes part in, [H, W, C], float64 whole numbers.

    It is the gradient of the sum of the outputs were every weight one, so that it holds for what the layer's own
    forward does: stride, dilation, groups, padding of any kind. Circular and reflected padding repeat an input.

    Args:
        dense: ``nn.Conv2d`` or a subclass.
        channels: C of the input.
        height: H of the input.
        width: W of the input.

    Example:
        >>> convolution_fan_out(nn.Conv2d(1, 2, 3, padding=1), 1, 2, 3)[..., 0].int().tolist()
        [[8, 12, 8], [8, 12, 8]]
    """
    weight = next(dense.parameters())
    with torch.enable_grad(), _Ones():
        x = torch.zeros(1, channels, height, width, dtype=weight.dtype, device=weight.device, requires_grad=True)
        found: Tensor = torch.autograd.grad(dense(x).sum(), x)[0]
    return found[0].movedim(0, -1).double().round()


class _Ones(TorchFunctionMode):
    """Lets convolutions run with weights of one."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") == "conv2d":
            args = args[0], torch.ones_like(args[1]), *args[2:]
        return function(*args, **(kwargs or {}))
