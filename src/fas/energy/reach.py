"""How far a spike reaches: the additions that one of every neuron sets off in the layers after its site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fas.layers.conv import SpikingConv2d, convolution_fan_out
from fas.layers.experts import SpikingExpert
from fas.types import Site


class Reach:
    """Fan-outs of the spiking layers of a model.

    A spike in front of a linear layer adds one column of its weights. In front of a convolution it adds, for every
    kernel that lies over its position, one entry of that kernel for each output channel of its group; near a border
    and between strides that is fewer.
    """

    def __init__(self, layers: Mapping[str, Any], sites: Iterable[Site]) -> None:
        self._layers = layers
        self._sites = {site.path: site.layers for site in sites}
        self._maps: dict[tuple[str, int, int], Tensor] = {}

    def __contains__(self, layer: str) -> bool:
        """Whether a dotted name is that of a spiking layer."""
        return layer in self._layers

    def of_site(self, path: str, shape: Sequence[int]) -> int | Tensor:
        """Return the additions that a spike sets off in all layers of a site.

        Args:
            path: the site.
            shape: of its neurons, [*B, C], or [*B, H, W, C] in front of convolutions.

        Returns:
            One number, or one for every neuron of a map [H, W, C], float64 whole numbers.
        """
        layers = self._sites[path]
        if self.routes(path):
            # Each call drives the one expert that its tokens were given to.
            layers = layers[:1]
        return sum(self.of_layer(layer, shape) for layer in layers)

    def routes(self, layer: str) -> bool:
        """Whether a layer is that of an expert."""
        return isinstance(self._layers[layer], SpikingExpert)

    def of_layer(self, path: str, shape: Sequence[int]) -> int | Tensor:
        """Return the same for one layer."""
        layer = self._layers[path]
        if not isinstance(layer, SpikingConv2d):
            return int(layer.out_features)
        height, width = shape[-3], shape[-2]
        key = path, height, width
        if key not in self._maps:
            self._maps[key] = convolution_fan_out(layer.dense(), layer.in_channels, height, width)
        return self._maps[key]

    def kernel_weights(self, path: str) -> int:
        """Return the weights that belong to one input channel of a site's convolutions."""
        layers = (self._layers[layer] for layer in self._sites[path])
        return sum(layer.weight.numel() // layer.in_channels for layer in layers)

    def multiply_adds(self, path: str, values: Tensor) -> int:
        """Return those of a dense layer on an input [*B, C] or [*B, C, H, W]; padding is not multiplied."""
        layer = self._layers[path]
        if not isinstance(layer, SpikingConv2d):
            return values.numel() * int(layer.out_features)
        channels, height, width = values.shape[-3:]
        fan_out = self.of_layer(path, (height, width, channels))
        assert isinstance(fan_out, Tensor)
        return values.shape[:-3].numel() * int(fan_out.sum())
