"""The whole model with the parameters of its export in whole numbers: what rounding costs from end to end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fas.exporting.fixed_point import FixedBlock
from fas.surgery.replace import populations, spiking_layers


@contextmanager
def rounded(model: Any, fixed: Sequence[FixedBlock]) -> Iterator[Any]:
    """Give a converted model the thresholds, potentials, weights and biases of whole numbers while the block runs.

    What stands between the blocks stays as it is; weights that a layer shares with an embedding are rounded in the
    layer only. Not included: the rounding of currents (half of 2⁻¹² of a threshold with 16 bits, of 2⁻²⁰ with 24), and
    potentials that saturate at eight thresholds.

    Yields:
        The model.

    Raises:
        KeyError: blocks of another model.

    Example:
        >>> with rounded(model, load_fixed_point("model.safetensors")):  # doctest: +SKIP
        ...     model.generate(**inputs)
    """
    neurons, layers = populations(model), spiking_layers(model)
    with ExitStack() as kept, torch.no_grad():
        kept.callback(model.reset)
        for block in fixed:
            unit = torch.ldexp(torch.ones_like(block.threshold, dtype=torch.float64), block.exponent.int())
            theta, offset = block.threshold * unit, block.offset * unit
            neuron = neurons[block.path]
            _set(kept, neuron, "log_threshold", theta.log())
            _set(kept, neuron, "v_init", block.v_init.double() / block.threshold)
            _set(kept, neuron, "offset", offset)
            for fixed_layer in block.layers:
                layer: Any = layers[fixed_layer.path]
                weight = torch.ldexp(fixed_layer.weight.double(), fixed_layer.exponent.int().unsqueeze(1)) / theta
                # The bias holds what an offset sends through the weights; the model adds that by itself.
                bias = torch.ldexp(fixed_layer.bias.double(), fixed_layer.exponent.int()) - weight @ offset
                own = 0 if layer.bias is None else layer.bias.detach().double().cpu()
                _set(kept, layer, "weight", weight.T if layer.transposed else weight)
                _set(kept, layer, "correction", bias - own)
        model.reset()
        yield model


def _set(kept: ExitStack, module: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor of one's own in the place of a parameter or buffer, until ``kept`` is closed."""
    there: Any = getattr(module, name)
    own = value.to(there.device, there.dtype).contiguous()
    setattr(module, name, nn.Parameter(own, requires_grad=False) if isinstance(there, nn.Parameter) else own)
    kept.callback(setattr, module, name, there)
