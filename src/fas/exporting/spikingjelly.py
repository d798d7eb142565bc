"""Blocks as SpikingJelly modules, and back."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from fas.errors import FASError, MissingExtraError
from fas.exporting.blocks import Affine, Block
from fas.exporting.folded import fold
from fas.neurons.soft_reset_if import SoftResetIF


class JellyBlock(nn.Module):
    """A block in SpikingJelly's own modules, step mode ``m``: (``Linear``,) ``IFNode`` with soft reset, ``Linear``.

    Thresholds are 1; a signed neuron is two, see ``fold``. ``IFNode`` starts from one number for all, so every call
    sets its membrane potentials to ``v_init`` first: a call is a whole window.

    Attributes:
        before: layer in front, or None.
        neurons: ``IFNode``.
        layers: those behind, side by side.
        v_init: v_0 [C'].
    """

    v_init: Tensor

    def __init__(self, before: nn.Module | None, neurons: nn.Module, layers: nn.Module, v_init: Tensor) -> None:
        super().__init__()
        self.before, self.neurons, self.layers = before, neurons, layers
        self.register_buffer("v_init", v_init)

    def forward(self, received: Tensor) -> tuple[Tensor, Tensor]:
        """Map what goes in [T, N, in or C'] to spikes [T, N, C'] and outputs [T, N, out]."""
        current = received if self.before is None else self.before(received)
        state: Any = self.neurons
        state.v = self.v_init.to(current.dtype).expand_as(current[0]).clone()
        spikes: Tensor = self.neurons(current)
        return spikes, self.layers(spikes)


def to_spikingjelly(block: Block) -> JellyBlock:
    """Return a block as SpikingJelly modules with the same spikes.

    Args:
        block: of a converted model (``fas.exporting.blocks.blocks``).

    Raises:
        MissingExtraError: SpikingJelly cannot be imported.
        FASError: neurons that ``IFNode`` cannot stand for (see ``fold``).
    """
    neuron, layer = _package()
    folded = fold(block)

    def linear(weight: Tensor, bias: Tensor) -> Any:
        made = layer.Linear(weight.shape[1], weight.shape[0], step_mode="m")
        with torch.no_grad():
            made.weight.copy_(weight)
            made.bias.copy_(bias)
        return made

    before = None if folded.entry is None else linear(*folded.entry)
    node = neuron.IFNode(v_threshold=1.0, v_reset=None, step_mode="m")
    return JellyBlock(before, node, linear(folded.weight, folded.bias), folded.v_init.clone())


def from_spikingjelly(module: nn.Module, timesteps: int, *, even: bool = True) -> Block:
    """Return the block that a SpikingJelly module is.

    Args:
        module: a ``JellyBlock``, or any module whose parts are, in order, (a linear layer,) an ``IFNode`` with soft
            reset and a linear layer. Its neurons start from ``v_init``, from zero without such an attribute.
        timesteps: T.
        even: whether its input is the same at every step.

    Returns:
        A block of ``soft_reset_if`` neurons, a signed pair as two.

    Raises:
        MissingExtraError: SpikingJelly cannot be imported.
        FASError: other parts, hard reset.
    """
    neuron, _ = _package()
    parts = [part for part in module.modules() if isinstance(part, nn.Linear | neuron.BaseNode)]
    before, node, layers = split(parts, neuron.IFNode, "IFNode")
    if node.v_reset is not None:
        raise FASError(f"the IFNode resets to {node.v_reset:g}; only reset by subtraction (v_reset=None) is known here")
    return plain_block(
        before, layers, float(node.v_threshold), getattr(module, "v_init", None), timesteps, even, "spikingjelly"
    )


def split(parts: list[Any], kind: type, name: str) -> tuple[nn.Linear | None, Any, nn.Linear]:
    """Return the layer in front (or None), the neurons and the layer behind.

    Raises:
        FASError: other parts, or another order.
    """
    where = [i for i, part in enumerate(parts) if isinstance(part, kind)]
    if where not in ([0], [1]) or len(parts) != where[0] + 2:
        found = ", ".join(type(part).__name__ for part in parts) or "nothing"
        raise FASError(f"a block is (Linear,) {name}, Linear; the module has {found}")
    return (parts[0] if where == [1] else None), parts[where[0]], parts[-1]


def plain_block(
    before: nn.Linear | None,
    layers: nn.Linear,
    threshold: float,
    potential: Tensor | None,
    timesteps: int,
    even: bool,
    path: str,
) -> Block:
    """Return a block of plain neurons with one threshold that start from a potential in its unit."""
    channels = layers.in_features
    start = (
        torch.zeros(channels) if potential is None else potential.detach().float().cpu().expand(channels) / threshold
    )
    return Block(
        path=path,
        neuron=SoftResetIF(),
        timesteps=timesteps,
        even=even,
        log_threshold=torch.full((channels,), threshold).log(),
        v_init=start.clone(),
        offset=torch.zeros(channels),
        layers=(_affine("layers", layers, threshold),),
        before=None if before is None else _affine("before", before, 1.0),
    )


def _affine(path: str, layer: nn.Linear, threshold: float) -> Affine:
    """Return a layer whose spikes weigh θ here and 1 there."""
    weight = layer.weight.detach().float().cpu() / threshold
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().float().cpu()
    return Affine(path, weight.clone(), bias.clone())


def _package() -> tuple[Any, Any]:
    try:
        neuron, layer = (
            importlib.import_module(f"spikingjelly.activation_based.{name}") for name in ("neuron", "layer")
        )
    except ImportError as error:
        raise MissingExtraError(
            f"SpikingJelly cannot be imported ({error}): pip install --no-deps spikingjelly into a folder that "
            "holds no torchvision, and put the folder on PYTHONPATH"
        ) from None
    return neuron, layer
