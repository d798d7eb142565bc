"""A block of plain integrate-and-fire neurons with one threshold: what other simulators can say."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fas.errors import FASError
from fas.exporting.blocks import Block
from fas.kernels.interface.code import recursion_of

# A power of two above the rounding error of potentials below 4 in float32.
TIE = 2.0**-22


@dataclass(frozen=True, eq=False)
class Folded:
    r"""s_t = [v_{t-1} + d_t ≥ 1], v_t = v_{t-1} + d_t − s_t, y_t = W' s_t + b'.

    Thresholds, offsets and corrections have moved into weights and biases: d = (x − μ)/θ, W' = W diag(θ),
    b' = b + δ + W μ. The mean of y_t over T steps is what the model's layers answer.

    A signed neuron becomes two, side by side, the second with the opposite input and the opposite weights
    (``mirrored``): for input that is even over time it only ever emits spikes of one sign. Its negative half
    fires below zero, not at it, where a plain neuron fires at its threshold; so 1 − v_0 is lowered by ``TIE``.

    Attributes:
        v_init: v_0 [C'], C' = C, or 2C if mirrored.
        weight: W' [out, C'].
        bias: b' [out].
        mirrored: whether the second half carries negative spikes.
        entry: weight [C', in] and bias [C'] of the layer in front; None if d comes from outside.
    """

    v_init: Tensor
    weight: Tensor
    bias: Tensor
    mirrored: bool
    entry: tuple[Tensor, Tensor] | None = None

    def drive(self, block: Block, current: Tensor) -> Tensor:
        """Return d_t [n, N, C'] for currents x_t [n, N, C]."""
        drive = (current - block.offset) / block.threshold
        return torch.cat([drive, -drive], -1) if self.mirrored else drive

    def received(self, block: Block) -> Tensor:
        """Return what goes into the folded block in the trace of the block, [T, N, in or C']."""
        trace = block.trace
        if trace is None:
            raise FASError(f"block {block.path} has no trace: make it with inputs of the model")
        found = self.drive(block, trace.current) if self.entry is None or trace.source is None else trace.source
        return found.expand(block.timesteps, *found.shape[1:])

    def fired(self, spikes: Tensor) -> Tensor:
        """Return signed spikes [T, N, C] as those of the plain neurons, uint8 [T, N, C']."""
        if not self.mirrored:
            return spikes.to(torch.uint8)
        return torch.cat([spikes > 0, spikes < 0], -1).to(torch.uint8)

    def run(self, received: Tensor) -> tuple[Tensor, Tensor]:
        """Simulate step by step.

        Args:
            received: what goes in [T, N, in or C'].

        Returns:
            Spikes [T, N, C'] and outputs [T, N, out].
        """
        if self.entry is not None:
            received = torch.nn.functional.linear(received, *(t.to(received.dtype) for t in self.entry))
        potential = self.v_init.to(received.dtype).expand_as(received[0])
        spikes = torch.empty_like(received)
        for t, current in enumerate(received):
            potential = potential + current
            spikes[t] = (potential >= 1).to(potential.dtype)
            potential = potential - spikes[t]
        weight, bias = self.weight.to(received.dtype), self.bias.to(received.dtype)
        return spikes, torch.nn.functional.linear(spikes, weight, bias)


def fold(block: Block) -> Folded:
    """Fold the parameters of a block.

    Raises:
        FASError: neurons that no plain integrate-and-fire neuron replaces; the message says what to choose instead.
    """
    mirrored = _mirrored(block)
    theta, v_init = block.threshold, block.v_init
    weight = torch.cat([layer.weight for layer in block.layers])
    bias = torch.cat([layer.bias for layer in block.layers]) + weight @ block.offset
    weight = weight * theta
    entry = None
    if block.before is not None:
        into, shift = block.before.weight / theta.unsqueeze(1), (block.before.bias - block.offset) / theta
        entry = (torch.cat([into, -into]), torch.cat([shift, -shift])) if mirrored else (into, shift)
    if mirrored:
        weight, v_init = torch.cat([weight, -weight], 1), torch.cat([v_init, 1 - v_init - TIE])
    return Folded(v_init, weight.contiguous(), bias, mirrored, entry)


def _mirrored(block: Block) -> bool:
    """Return whether two plain neurons stand for one, or refuse."""
    name = type(block.neuron).__name__
    kind = recursion_of(block.neuron)
    if kind == "binary":
        return False
    if kind == "ternary" and block.even:
        return block.neuron.signed
    if kind == "ternary":
        raise FASError(
            f"site {block.path}: {name} takes spikes back while its input changes, which a plain integrate-and-fire "
            "neuron cannot: set model.schedule = 'layerwise', where input is even, or convert with "
            "neuron='soft_reset_if'"
        )
    if kind == "graded":
        raise FASError(
            f"site {block.path}: {name} sends several spikes a step, a plain integrate-and-fire neuron one: convert "
            "with neuron='signed_if', which ends with the same counts layerwise"
        )
    raise FASError(
        f"site {block.path}: {name} sends the digits of its count, whose weight depends on the step, and no "
        "integrate-and-fire neuron does: convert with neuron='signed_if' or 'soft_reset_if'"
    )
