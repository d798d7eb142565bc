"""Blocks as snnTorch modules, and back."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from fas.errors import FASError, MissingExtraError
from fas.exporting.blocks import Block
from fas.exporting.folded import TIE, fold
from fas.exporting.spikingjelly import plain_block, split


class TorchBlock(nn.Module):
    """A block in snnTorch's own modules: (``Linear``,) ``Leaky`` without leak and with soft reset, ``Linear``.

    Thresholds are 1; a signed neuron is two, see ``fold``. ``Leaky`` fires above its threshold and not at it, so its
    potentials start ``TIE`` higher. A call is a whole window.

    Attributes:
        before: layer in front, or None.
        neurons: ``snntorch.Leaky``.
        layers: those behind, side by side.
        v_init: where the potentials start [C'].
    """

    v_init: Tensor

    def __init__(self, before: nn.Module | None, neurons: nn.Module, layers: nn.Module, v_init: Tensor) -> None:
        super().__init__()
        self.before, self.neurons, self.layers = before, neurons, layers
        self.register_buffer("v_init", v_init)

    def forward(self, received: Tensor) -> tuple[Tensor, Tensor]:
        """Map what goes in [T, N, in or C'] to spikes [T, N, C'] and outputs [T, N, out]."""
        current = received if self.before is None else self.before(received)
        potential = self.v_init.to(current.dtype).expand_as(current[0])
        trains = []
        for step in current:
            spikes, potential = self.neurons(step, potential)
            trains.append(spikes)
        stacked = torch.stack(trains)
        return stacked, self.layers(stacked)


def to_snntorch(block: Block) -> TorchBlock:
    """Return a block as snnTorch modules with the same spikes.

    Args:
        block: of a converted model (``fas.exporting.blocks.blocks``).

    Raises:
        MissingExtraError: snnTorch cannot be imported.
        FASError: neurons that ``Leaky`` cannot stand for (see ``fold``).
    """
    package = _package()
    folded = fold(block)
    before = None if folded.entry is None else _linear(*folded.entry)
    neurons = package.Leaky(beta=1.0, threshold=1.0, reset_mechanism="subtract")
    return TorchBlock(before, neurons, _linear(folded.weight, folded.bias), folded.v_init + TIE)


def from_snntorch(module: nn.Module, timesteps: int, *, even: bool = True) -> Block:
    """Return the block that an snnTorch module is.

    Args:
        module: a ``TorchBlock``, or any module whose parts are, in order, (a linear layer,) ``Leaky`` with β = 1
            and reset by subtraction, and a linear layer. Its neurons start from ``v_init``, from zero without such
            an attribute.
        timesteps: T.
        even: whether its input is the same at every step.

    Returns:
        A block of ``soft_reset_if`` neurons, a signed pair as two. They fire at the threshold, ``Leaky`` above it:
        potentials start ``TIE`` lower here.

    Raises:
        MissingExtraError: snnTorch cannot be imported.
        FASError: other parts, a leak, another reset, more than one threshold.
    """
    package = _package()
    parts = [part for part in module.modules() if isinstance(part, nn.Linear | package.SpikingNeuron)]
    before, neurons, layers = split(parts, package.Leaky, "Leaky")
    if not bool((neurons.beta == 1).all()):
        least = float(neurons.beta.min())
        raise FASError(f"Leaky has beta {least:g}: only neurons without leak (beta = 1) are known here")
    if neurons.reset_mechanism != "subtract":
        raise FASError(f"Leaky has reset_mechanism {neurons.reset_mechanism!r}: only 'subtract' is known here")
    if neurons.threshold.numel() != 1:
        raise FASError(f"Leaky has {neurons.threshold.numel()} thresholds: only one for all is known here")
    threshold = float(neurons.threshold)
    start = getattr(module, "v_init", None)
    started = torch.zeros(layers.in_features) if start is None else start
    return plain_block(before, layers, threshold, started - TIE * threshold, timesteps, even, "snntorch")


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        made.weight.copy_(weight)
        made.bias.copy_(bias)
    return made


def _package() -> Any:
    try:
        package = importlib.import_module("snntorch")
    except ImportError as error:
        raise MissingExtraError(f"snnTorch cannot be imported ({error}): pip install --no-deps snntorch") from None
    return package
