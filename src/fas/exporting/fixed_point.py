"""A converted model in whole numbers: 8-bit weights, integer thresholds and potentials, power-of-two scales."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fas import __version__
from fas.errors import CheckpointError, FASError
from fas.exporting.blocks import Affine, Block, blocks, entry_of, neuron_of, relative_error
from fas.storage.directory import write_tensors
from fas.types import RateNeuron

# 2: names of neurons and of layers apart, since a site is called like the first layer after it.
FORMAT = 2
MembraneBits = Literal[16, 24]

# A potential may be this many thresholds away from zero before it saturates.
_HEADROOM = 8
_LARGEST_WEIGHT = 127
_ACCUMULATOR = 2**31 - 1


@dataclass(frozen=True, eq=False)
class FixedLayer:
    """y_i = 2^{e_i} (Σ_j q_ij s_j + b_i): additions of 8-bit weights, one bias, one shift.

    Attributes:
        path: of the layer in the model.
        weight: q [out, C], int8, from −127 to 127; thresholds are folded into it.
        bias: b [out], int32; offsets and corrections are folded into it.
        exponent: e [out], int16.
    """

    path: str
    weight: Tensor
    bias: Tensor
    exponent: Tensor

    @property
    def accumulator_bits(self) -> int:
        """Bits, with sign, that hold the sum of one step whatever the spikes."""
        worst = int((self.weight.abs().long().sum(1) + self.bias.abs().long()).max())
        return worst.bit_length() + 1


@dataclass(frozen=True, eq=False)
class FixedBlock:
    """One site in whole numbers. The unit of channel c is 2^{e_c}.

    Attributes:
        path: of the site.
        neuron: the neuron model, whose definition runs on whole numbers as it stands.
        timesteps: T.
        even: whether the input is the same at every step.
        membrane_bits: of potentials, with sign.
        threshold: θ/2^e [C], int32.
        v_init: v_0/2^e [C], int32.
        offset: μ/2^e [C], int32, taken off the current when it enters.
        exponent: e [C], int16.
        layers: that read the spikes.
    """

    path: str
    neuron: RateNeuron
    timesteps: int
    even: bool
    membrane_bits: int
    threshold: Tensor
    v_init: Tensor
    offset: Tensor
    exponent: Tensor
    layers: tuple[FixedLayer, ...]

    def encode(self, current: Tensor) -> Tensor:
        """Return currents x_t [n, N, C] of the model as whole numbers x/2^e − μ/2^e, int32, saturating."""
        most = 2 ** (self.membrane_bits - 1) - 1
        whole = torch.ldexp(current.double(), -self.exponent.int()).round() - self.offset.double()
        return whole.clamp(-most - 1, most).int()

    def run(self, current: Tensor) -> Run:
        """Simulate step by step, in whole numbers only.

        Args:
            current: int32 [n, N, C] from ``encode``; n = 1 for the same at every step, else T.
        """
        most = 2 ** (self.membrane_bits - 1) - 1
        # float64 holds whole numbers below 2^53 exactly, and takes their products by the library of floats.
        current = current.double().expand(self.timesteps, *current.shape[1:])
        threshold = self.threshold.double()
        potential = self.v_init.double().expand_as(current[0])
        count, spikes = torch.zeros_like(potential), torch.empty_like(current)
        saturated, peak = 0, 0
        for t, step in enumerate(current):
            reached = potential + step
            peak = max(peak, int(reached.abs().max())) if reached.numel() else peak
            saturated += int(((reached > most) | (reached < -most - 1)).sum())
            # Saturating adder, then the neuron's own definition with nothing more to add.
            held = reached.clamp(-most - 1, most)
            spikes[t], potential = self.neuron.step(torch.zeros_like(held), held, count, threshold, self.timesteps)
            count = count + spikes[t]
        sums = {
            layer.path: (spikes @ layer.weight.double().T + layer.bias.double()).to(torch.int64)
            for layer in self.layers
        }
        return Run(spikes.to(torch.int16), sums, saturated, peak)

    def output(self, run: Run) -> Tensor:
        """Return the sums of a run as the model's outputs side by side [n, N, out]; the mean over T where even."""
        parts = [torch.ldexp(run.sums[layer.path].double(), layer.exponent.int()) for layer in self.layers]
        found = torch.cat(parts, -1)
        return found.mean(0, keepdim=True) if self.even else found


@dataclass(frozen=True, eq=False)
class Run:
    """What a block in whole numbers did.

    Attributes:
        spikes: s_t [T, N, C], int16.
        sums: of every layer at every step [T, N, out], int64; how many bits they need, the layer says.
        saturated: how often a potential met its bound.
        peak: the largest potential before any bound.
    """

    spikes: Tensor
    sums: dict[str, Tensor]
    saturated: int
    peak: int


@dataclass(frozen=True)
class Cost:
    """What whole numbers cost at one site, against the same block in floating point.

    Attributes:
        site: of the block.
        threshold_error: largest |θ' − θ|/θ.
        weight_error: ‖W' − W‖/‖W‖ with thresholds folded in.
        spike_errors: share of neurons and steps that differ from the model's spikes.
        relative_error: of the outputs on the trace, ‖y' − y‖/‖y‖.
        saturated: potentials that met their bound.
        accumulator_bits: that a layer's sum can need.
    """

    site: str
    threshold_error: float
    weight_error: float
    spike_errors: float
    relative_error: float
    saturated: int
    accumulator_bits: int


def fix(block: Block, membrane_bits: MembraneBits = 16) -> FixedBlock:
    """Return a block in whole numbers.

    Every channel has the power of two as its unit that lets potentials reach 8 thresholds either way; every output
    has the one that lets its largest weight come as near to 127 as it goes.

    Raises:
        FASError: digits (their weight changes from step to step), sums that 32 bits do not hold.
        ValueError: ``membrane_bits`` that are neither 16 nor 24.
    """
    if membrane_bits not in (16, 24):
        raise ValueError(f"membrane_bits is {membrane_bits!r}; choose 16 or 24")
    if not isinstance(block.neuron, RateNeuron):
        raise FASError(
            f"site {block.path}: {type(block.neuron).__name__} sends digits, whose weight changes from step to step: "
            "convert with neuron='signed_if', 'clipped_count' or 'soft_reset_if'"
        )
    theta, offset = block.threshold.double(), block.offset.double()
    most = 2 ** (membrane_bits - 1) / _HEADROOM
    # Rounding must not lift a threshold beyond what its bits hold.
    exponent = torch.frexp(theta / (most - 1)).exponent
    threshold = torch.ldexp(theta, -exponent).round()
    used = torch.ldexp(threshold, exponent)
    return FixedBlock(
        path=block.path,
        neuron=block.neuron,
        timesteps=block.timesteps,
        even=block.even,
        membrane_bits=membrane_bits,
        threshold=threshold.int(),
        v_init=(threshold * block.v_init.double()).round().int(),
        offset=torch.ldexp(offset, -exponent).round().clamp(-(2**31), _ACCUMULATOR).int(),
        exponent=exponent.to(torch.int16),
        layers=tuple(_fixed(layer, used, offset) for layer in block.layers),
    )


def export_fixed_point(
    model: Any,
    file: str | Path,
    inputs: Mapping[str, Tensor],
    *,
    membrane_bits: MembraneBits = 16,
    sites: Sequence[str] | None = None,
    rows: int = 32,
) -> list[Cost]:
    """Write the blocks of a converted model in whole numbers to one safetensors file, and say what that costs.

    Args:
        model: a converted model, set to the T and schedule that are meant.
        file: to write; it appears whole or not at all.
        inputs: of the model's forward, on which the cost is measured.
        membrane_bits: 16 or 24.
        sites: names of the sites that are wanted; all that linear layers follow if None.
        rows: samples times positions to measure on.

    Raises:
        FASError: see ``fix``.
        SiteError: see ``fas.exporting.blocks.blocks``.
        OSError: disk full, no permission.
    """
    found = blocks(model, inputs, sites=sites, rows=rows)
    fixed = [fix(block, membrane_bits) for block in found]
    costs = [cost(block, whole) for block, whole in zip(found, fixed, strict=True)]
    save_fixed_point(fixed, file)
    return costs


def cost(block: Block, fixed: FixedBlock) -> Cost:
    """Return what whole numbers cost on the trace of a block."""
    trace = block.trace
    if trace is None:
        raise FASError(f"block {block.path} has no trace: make it with inputs of the model")
    run = fixed.run(fixed.encode(trace.current))
    wanted, answer = trace.output.double(), fixed.output(run)
    theta = block.threshold.double()
    used = torch.ldexp(fixed.threshold.double(), fixed.exponent.int())
    folded = torch.cat([layer.weight.double() * theta for layer in block.layers])
    whole = torch.cat([torch.ldexp(la.weight.double(), la.exponent.int().unsqueeze(1)) for la in fixed.layers])
    return Cost(
        site=block.path,
        threshold_error=float(((used - theta) / theta).abs().max()),
        weight_error=relative_error(whole, folded),
        spike_errors=float((run.spikes != trace.spikes).double().mean()),
        relative_error=relative_error(answer, wanted),
        saturated=run.saturated,
        accumulator_bits=max(layer.accumulator_bits for layer in fixed.layers),
    )


def save_fixed_point(fixed: Sequence[FixedBlock], file: str | Path) -> None:
    """Write blocks in whole numbers to one safetensors file, which appears whole or not at all."""
    tensors: dict[str, Tensor] = {}
    entries = []
    for block in fixed:
        tensors |= {f"neurons/{block.path}/{name}": getattr(block, name) for name in _NEURON_TENSORS}
        for layer in block.layers:
            tensors |= {f"layers/{layer.path}/{name}": getattr(layer, name) for name in _LAYER_TENSORS}
        entries.append(
            {
                "site": block.path,
                **entry_of(block.neuron),
                "timesteps": block.timesteps,
                "even": block.even,
                "membrane_bits": block.membrane_bits,
                "layers": [layer.path for layer in block.layers],
            }
        )
    about = {"format": FORMAT, "fas": __version__, "blocks": entries}
    target = Path(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(target, tensors, {"fixed_point": json.dumps(about)})


def load_fixed_point(file: str | Path) -> list[FixedBlock]:
    """Read what ``save_fixed_point`` has written, to the last bit.

    Raises:
        CheckpointError: a file that is missing, damaged, or of another kind or format.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            about = json.loads((opened.metadata() or {}).get("fixed_point", "null"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    except (SafetensorError, OSError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}): export the model again") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        kind = "no model in whole numbers" if about is None else f"of format {about.get('format')!r}"
        raise CheckpointError(f"{file} is {kind}; expected one that fas {__version__} wrote, format {FORMAT}")
    try:
        return [_loaded(entry, tensors) for entry in about["blocks"]]
    except KeyError as error:
        raise CheckpointError(f"{file} lacks {error}: it is damaged or was edited; export the model again") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged or was edited ({error}): export the model again") from None


_NEURON_TENSORS = ("threshold", "v_init", "offset", "exponent")
_LAYER_TENSORS = ("weight", "bias", "exponent")


def _loaded(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FixedBlock:
    path = entry["site"]
    return FixedBlock(
        path=path,
        neuron=neuron_of(entry),
        timesteps=entry["timesteps"],
        even=entry["even"],
        membrane_bits=entry["membrane_bits"],
        **{name: tensors[f"neurons/{path}/{name}"] for name in _NEURON_TENSORS},
        layers=tuple(
            FixedLayer(name, *(tensors[f"layers/{name}/{part}"] for part in _LAYER_TENSORS)) for name in entry["layers"]
        ),
    )


def _fixed(layer: Affine, theta: Tensor, offset: Tensor) -> FixedLayer:
    folded = layer.weight.double() * theta
    bias = layer.bias.double() + layer.weight.double() @ offset
    largest = folded.abs().amax(1).clamp_min(2.0**-126)
    # ⌈log2(largest/127)⌉, without the rounding of a logarithm.
    mantissa, exponent = torch.frexp(largest / _LARGEST_WEIGHT)
    exponent = exponent - (mantissa == 0.5).int()
    whole = torch.ldexp(bias, -exponent).round()
    fixed = FixedLayer(
        layer.path,
        torch.ldexp(folded, -exponent.unsqueeze(1)).round().to(torch.int8),
        whole.clamp(-_ACCUMULATOR, _ACCUMULATOR).int(),
        exponent.to(torch.int16),
    )
    if fixed.accumulator_bits > 32:
        raise FASError(
            f"{layer.path}: a sum of weights and bias can need {fixed.accumulator_bits} bits, an accumulator has 32: "
            "the bias is too large beside the weights"
        )
    return fixed
