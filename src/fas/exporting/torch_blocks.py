"""Blocks as modules of SpikingJelly and snnTorch, and back."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fas.errors import FASError, MissingExtraError
from fas.exporting.blocks import Block, affine
from fas.exporting.folded import TIE, fold
from fas.neurons.soft_reset_if import SoftResetIF

Run = Callable[[Any, Tensor, Tensor], Tensor]
"""Maps neurons, currents [T, N, C'] and the potentials to start from [N, C'] to spikes [T, N, C']."""


class TorchBlock(nn.Module):
    """A block in modules of a simulator: (``Linear``,) neurons with soft reset, ``Linear``.

    Thresholds are 1; a signed neuron is two, see ``fold``. A call is a whole window: it starts from ``v_init``.

    Attributes:
        before: layer in front, or None.
        neurons: SpikingJelly's ``IFNode`` in step mode ``m``, or snnTorch's ``Leaky`` without leak.
        layers: those after them, side by side.
        v_init: where the potentials start [C'].
    """

    v_init: Tensor

    def __init__(
        self, before: nn.Module | None, neurons: nn.Module, layers: nn.Module, v_init: Tensor, run: Run
    ) -> None:
        super().__init__()
        self.before, self.neurons, self.layers, self._run = before, neurons, layers, run
        self.register_buffer("v_init", v_init)

    def forward(self, received: Tensor) -> tuple[Tensor, Tensor]:
        """Map what goes in [T, N, in or C'] to spikes [T, N, C'] and outputs [T, N, out]."""
        current = received if self.before is None else self.before(received)
        spikes = self._run(self.neurons, current, self.v_init.to(current.dtype).expand_as(current[0]))
        return spikes, self.layers(spikes)


def to_spikingjelly(block: Block) -> TorchBlock:
    """Return a block as SpikingJelly modules with the same spikes.

    Raises:
        MissingExtraError: SpikingJelly cannot be imported.
        FASError: neurons that ``IFNode`` cannot stand for (see ``fold``).
    """
    neuron, layer = _spikingjelly()
    node = neuron.IFNode(v_threshold=1.0, v_reset=None, step_mode="m")
    return _made(block, node, functools.partial(layer.Linear, step_mode="m"), 0.0, _whole_window)


def to_snntorch(block: Block) -> TorchBlock:
    """Return a block as snnTorch modules with the same spikes.

    ``Leaky`` fires above its threshold and not at it, so its potentials start ``TIE`` higher.

    Raises:
        MissingExtraError: snnTorch cannot be imported.
        FASError: neurons that ``Leaky`` cannot stand for (see ``fold``).
    """
    neurons = _snntorch().Leaky(beta=1.0, threshold=1.0, reset_mechanism="subtract")
    return _made(block, neurons, nn.Linear, TIE, _step_by_step)


def from_spikingjelly(module: nn.Module, timesteps: int, *, even: bool = True) -> Block:
    """Return the block that a SpikingJelly module is.

    Args:
        module: a ``TorchBlock``, or any module whose parts are, in order, (a linear layer,) an ``IFNode`` with soft
            reset and a linear layer. Its neurons start from ``v_init``, from zero without such an attribute.
        timesteps: T.
        even: whether its input is the same at every step.

    Returns:
        A block of ``soft_reset_if`` neurons, a signed pair as two.

    Raises:
        MissingExtraError: SpikingJelly cannot be imported.
        FASError: other parts, hard reset.
    """
    neuron, _ = _spikingjelly()
    before, node, layers = split(module, neuron.BaseNode, neuron.IFNode)
    if node.v_reset is not None:
        raise FASError(f"the IFNode resets to {node.v_reset:g}; only reset by subtraction (v_reset=None) is known here")
    return _plain(module, (before, float(node.v_threshold), layers), 0.0, timesteps, even, "spikingjelly")


def from_snntorch(module: nn.Module, timesteps: int, *, even: bool = True) -> Block:
    """Return the block that an snnTorch module is, as ``from_spikingjelly``.

    Its neurons are ``Leaky`` with β = 1, one threshold and reset by subtraction. They fire above the threshold, ours at
    it: potentials start ``TIE`` lower here.

    Raises:
        MissingExtraError: snnTorch cannot be imported.
        FASError: other parts, a leak, another reset, more than one threshold.
    """
    package = _snntorch()
    before, neurons, layers = split(module, package.SpikingNeuron, package.Leaky)
    if not bool((neurons.beta == 1).all()):
        least = float(neurons.beta.min())
        raise FASError(f"Leaky has beta {least:g}: only neurons without leak (beta = 1) are known here")
    if neurons.reset_mechanism != "subtract":
        raise FASError(f"Leaky has reset_mechanism {neurons.reset_mechanism!r}: only 'subtract' is known here")
    if neurons.threshold.numel() != 1:
        raise FASError(f"Leaky has {neurons.threshold.numel()} thresholds: only one for all is known here")
    return _plain(module, (before, float(neurons.threshold), layers), TIE, timesteps, even, "snntorch")


def split(module: nn.Module, neurons: type, kind: type) -> tuple[nn.Linear | None, Any, nn.Linear]:
    """Return the layer in front (or None), the neurons and the layer after them.

    Raises:
        FASError: other parts, or another order.
    """
    parts: list[Any] = [part for part in module.modules() if isinstance(part, nn.Linear | neurons)]
    where = [i for i, part in enumerate(parts) if isinstance(part, kind)]
    if where not in ([0], [1]) or len(parts) != where[0] + 2:
        found = ", ".join(type(part).__name__ for part in parts) or "nothing"
        raise FASError(f"a block is (Linear,) {kind.__name__}, Linear; the module has {found}")
    return (parts[0] if where == [1] else None), parts[where[0]], parts[-1]


def _made(block: Block, neurons: nn.Module, linear: Callable[..., nn.Linear], tie: float, run: Run) -> TorchBlock:
    folded = fold(block)

    def layer(weight: Tensor, bias: Tensor) -> nn.Linear:
        made = linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            made.weight.copy_(weight)
            made.bias.copy_(bias)
        return made

    before = None if folded.entry is None else layer(*folded.entry)
    return TorchBlock(before, neurons, layer(folded.weight, folded.bias), folded.v_init + tie, run)


def _whole_window(node: Any, current: Tensor, start: Tensor) -> Tensor:
    # IFNode starts from one number for all; its state takes one for each.
    node.v = start.clone()
    spikes: Tensor = node(current)
    return spikes


def _step_by_step(neurons: Any, current: Tensor, potential: Tensor) -> Tensor:
    trains = []
    for step in current:
        spikes, potential = neurons(step, potential)
        trains.append(spikes)
    return torch.stack(trains)


def _plain(
    module: nn.Module,
    parts: tuple[nn.Linear | None, float, nn.Linear],
    tie: float,
    timesteps: int,
    even: bool,
    path: str,
) -> Block:
    """Return a block of plain neurons with one threshold; ``v_init`` of the module is in the threshold's unit."""
    before, threshold, layers = parts
    channels, behind = layers.in_features, affine("layers", layers)
    started = torch.as_tensor(getattr(module, "v_init", 0.0)).detach().float().cpu().expand(channels)
    return Block(
        path=path,
        neuron=SoftResetIF(),
        timesteps=timesteps,
        even=even,
        log_threshold=torch.full((channels,), threshold).log(),
        v_init=started / threshold - tie,
        offset=torch.zeros(channels),
        # Spikes weigh θ here and 1 there.
        layers=(replace(behind, weight=behind.weight / threshold),),
        before=None if before is None else affine("before", before),
    )


def _spikingjelly() -> tuple[Any, Any]:
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


def _snntorch() -> Any:
    try:
        return importlib.import_module("snntorch")
    except ImportError as error:
        raise MissingExtraError(f"snnTorch cannot be imported ({error}): pip install --no-deps snntorch") from None
