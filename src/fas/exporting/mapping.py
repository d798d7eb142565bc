"""An estimate of what a converted model would take on a neuromorphic chip: cores, memory, messages between chips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fas.energy.prices import read_described
from fas.errors import DataError, FASError, SiteError
from fas.layers.conv import convolution_fan_out
from fas.layers.linear import SpikingLinear
from fas.recording import record
from fas.surgery.probe import hooked
from fas.surgery.replace import spiking_layers
from fas.types import OPERANDS, Measurement

CHIPS: Any = files("fas") / "exporting" / "chips"
"""Folder of the chips that come with the library."""
_UNITS = {
    "cores_per_chip": "cores",
    "neurons_per_core": "neurons",
    "memory_per_core": "bits",
    "weight_bits": "bits",
    "message_bits": "bits",
    "shared_kernels": "1",
}


@dataclass(frozen=True)
class Chip:
    """What a chip offers, as far as a mapping estimate asks.

    Attributes:
        name: of its file.
        title: what it stands for.
        reference: publication.
        cores_per_chip: cores of one chip.
        neurons_per_core: units with a state (neurons, or accumulators of a layer) that a core holds.
        memory_per_core: bits for weights.
        weight_bits: of one weight.
        message_bits: of one spike between chips.
        shared_kernels: 1 if a core keeps the kernel of a convolution once for all positions, else 0.
        sources: where each figure is from.
        assumptions: names of the figures for which no source has been read.
    """

    name: str
    title: str
    reference: str
    cores_per_chip: int
    neurons_per_core: int
    memory_per_core: int
    weight_bits: int
    message_bits: int
    shared_kernels: int
    sources: Mapping[str, str]
    assumptions: tuple[str, ...]


def load_chip(name: str | Path) -> Chip:
    """Read a chip.

    Args:
        name: one that comes with the library (``loihi2``), or a TOML file of the same form.

    Raises:
        ValueError: neither a known name nor a file.
        DataError: a file that describes no chip: the figure and the rule are named.

    Example:
        >>> load_chip("loihi2").neurons_per_core
        8192
    """
    stem, title, reference, constants = read_described(name, CHIPS, "chip", _UNITS, ("assumption",))
    if missing := [key for key in _UNITS if key not in constants]:
        raise DataError(f"chip {stem} lacks {', '.join(missing)}: give tables [constants.<name>] for them")
    for key, entry in constants.items():
        value, is_choice = entry["value"], _UNITS[key] == "1"
        if type(value) is not int or value < (not is_choice) or (is_choice and value > 1):
            wanted = "0 or 1" if is_choice else "a whole number above zero"
            raise DataError(f"constant {key} of chip {stem} is {value!r}; expected {wanted}")
    figures, sources = ({key: entry[of] for key, entry in constants.items()} for of in ("value", "source"))
    assumptions = tuple(key for key, entry in constants.items() if entry.get("assumption"))
    return Chip(stem, title, reference, **figures, sources=sources, assumptions=assumptions)


@dataclass(frozen=True)
class Placement:
    """What one site takes: its neurons, and the layers that read them.

    Attributes:
        site: path.
        neurons: channels of the site, times the positions of its map in front of a convolution.
        outputs: sums that the layers after them form; each needs a unit with a state.
        synapses: connections from a neuron to an output, without those to padding.
        weights: stored; fewer than synapses where kernels are shared, more where they are copied to several cores.
        cores: for the neurons and for the layers.
        chips: on which these lie, first and last.
        spikes: of the neurons for one token or image; None if they were not measured.
        deliveries: spikes times the cores that each reaches.
        off_chip: messages that leave the chip of their neuron, one for each other chip that is reached.
    """

    site: str
    neurons: int
    outputs: int
    synapses: int
    weights: int
    cores: int
    chips: tuple[int, int]
    spikes: float | None = None
    deliveries: float | None = None
    off_chip: float | None = None


@dataclass(frozen=True)
class Mapped:
    """A model on a chip.

    Attributes:
        chip: what it was mapped to.
        placements: by site, in the order of execution.
        left: sites that have no place, with the reason.
        unit: what spikes are counted for, ``token`` or ``image``; None without spikes.
    """

    chip: Chip
    placements: tuple[Placement, ...]
    left: Mapping[str, str]
    unit: str | None = None

    def total(self, name: str) -> float:
        """Return the sum of a field over the sites; 0 where nothing was measured."""
        return math.fsum(getattr(placement, name) or 0 for placement in self.placements)

    @property
    def cores(self) -> int:
        """Cores in all."""
        return int(self.total("cores"))

    @property
    def chips(self) -> int:
        """Chips in all."""
        return -(-self.cores // self.chip.cores_per_chip)

    @property
    def memory_used(self) -> float:
        """Share of the memory of the cores that weights take."""
        return self.total("weights") * self.chip.weight_bits / (self.cores * self.chip.memory_per_core)

    @property
    def units_used(self) -> float:
        """Share of the units of the cores that neurons and outputs take."""
        return (self.total("neurons") + self.total("outputs")) / (self.cores * self.chip.neurons_per_core)

    def measurements(self, **conditions: Any) -> Iterator[Measurement]:
        """Yield every figure as a row of origin ``estimated``: per site, then in all; spikes are ``measured``."""
        about = {**conditions, "chip": self.chip.name, "assumptions": list(self.chip.assumptions)}
        names = ("neurons", "outputs", "synapses", "weights", "cores")
        units = {name: "units" if name == "outputs" else name for name in names}
        if self.unit is not None:
            units["spikes"] = f"spikes/{self.unit}"
            units |= {name: f"messages/{self.unit}" for name in ("deliveries", "off_chip")}
        for name, unit in units.items():
            origin: Any = "measured" if name == "spikes" else "estimated"
            for placement in self.placements:
                value = float(getattr(placement, name))
                yield Measurement(name, value, unit, origin, {**about, "site": placement.site})
            yield Measurement(name, self.total(name), unit, origin, about)
        yield Measurement("chips", self.chips, "chips", "estimated", about)
        yield Measurement("memory_used", self.memory_used, "1", "estimated", about)
        yield Measurement("units_used", self.units_used, "1", "estimated", about)
        if self.unit is not None:
            bits = self.total("off_chip") * self.chip.message_bits
            yield Measurement("off_chip_bits", bits, f"bits/{self.unit}", "estimated", about)


@torch.no_grad()
def map_to_chip(model: Any, chip: Chip, inputs: Mapping[str, Tensor] | None = None, *, spikes: bool = True) -> Mapped:
    """Estimate what a converted model takes on a chip.

    A core holds neurons of one site, or outputs of one layer with the weights that lead to them; positions of a text
    follow each other on the same units, positions of a map have their own. Cores are given out in the order of
    execution, chip after chip. A spike goes to every core of the layers that read it (of a convolution too, though
    not every core may have a position that sees it), and once to every other chip among them; the spikes of a site
    are taken as even over its neurons. What no spike drives (normalisation, softmax, embeddings) has no place.

    Args:
        model: a converted model, set to the T and schedule that are meant.
        chip: see ``load_chip``.
        inputs: of its forward, for sizes of maps and spikes; a text model without them is mapped without traffic.
        spikes: whether to measure spikes on the inputs.

    Raises:
        SiteError: a convolution whose map is unknown without inputs, or that the inputs do not reach.
        FASError: an output whose weights no core can hold.
        NotCalibratedError: thresholds are not set, and spikes are asked for.
    """
    layers = spiking_layers(model)
    maps: dict[str, tuple[Tensor, Tensor]] = {}
    recorded: dict[str, float] = {}
    unit = None
    if inputs is not None:
        recorded, maps = _run(model, inputs, layers, spikes)
        unit = ("token" if "input_ids" in inputs else "image") if spikes else None
    placements, left, core = [], {}, 0
    for site in model.sites:
        if site.role in OPERANDS:
            left[site.path] = "a factor in attention: both sides of the product are spikes"
            continue
        needs = [_need(path, layers[path], maps.get(path), chip) for path in site.layers]
        neurons = site.channels * needs[0].positions
        own = -(-neurons // chip.neurons_per_core)
        count = own + sum(need.cores for need in needs)
        if unit is not None and site.path not in recorded:
            raise SiteError(f"{site.path} was not reached by the inputs: pass inputs that use it")
        placements.append(
            Placement(
                site.path,
                neurons,
                sum(need.outputs for need in needs),
                sum(need.synapses for need in needs),
                sum(need.weights for need in needs),
                count,
                (core // chip.cores_per_chip, (core + count - 1) // chip.cores_per_chip),
                *(_traffic(recorded[site.path], neurons, core, own, count, chip) if unit is not None else ()),
            )
        )
        core += count
    return Mapped(chip, tuple(placements), left, unit)


@dataclass(frozen=True)
class _Need:
    """What a layer asks of a chip; ``positions`` of the map in front of it."""

    positions: int
    outputs: int
    synapses: int
    weights: int
    cores: int


def _need(path: str, layer: nn.Module, sizes: tuple[Tensor, Tensor] | None, chip: Chip) -> _Need:
    if isinstance(layer, SpikingLinear):
        fan_in, outputs = layer.in_features, layer.out_features
        cores = -(-outputs // min(chip.neurons_per_core, _held(path, fan_in, chip)))
        return _Need(1, outputs, fan_in * outputs, fan_in * outputs, cores)
    if sizes is None:
        raise SiteError(f"{path} is a convolution, whose map is known from a run only: pass inputs that reach it")
    (before, after), dense = sizes, layer.dense()  # type: ignore[operator]
    area, channels = after[0].numel(), dense.out_channels
    fan_in = dense.weight[0].numel()
    held = _held(path, fan_in, chip)
    synapses = int(convolution_fan_out(dense, dense.in_channels, *before.shape[-2:]).sum())
    units = chip.neurons_per_core
    if not chip.shared_kernels:
        cores, weights = -(-area * channels // min(units, held)), area * channels * fan_in
    elif area <= units:
        cores, weights = -(-channels // min(held, units // area)), channels * fan_in
    else:
        # Every core with a part of a channel's map has the channel's kernel.
        cores = channels * -(-area // units)
        weights = cores * fan_in
    return _Need(before[0].numel(), area * channels, synapses, weights, cores)


def _held(path: str, fan_in: int, chip: Chip) -> int:
    """Return for how many outputs a core has memory."""
    held = chip.memory_per_core // (fan_in * chip.weight_bits)
    if not held:
        raise FASError(
            f"{path}: one output has {fan_in} weights, {fan_in * chip.weight_bits} bits, but a core of {chip.name} "
            f"holds {chip.memory_per_core}: leave the layer out of the conversion, or name a chip with more memory"
        )
    return held


def _traffic(spikes: float, neurons: int, core: int, own: int, count: int, chip: Chip) -> tuple[float, float, float]:
    """Return spikes, deliveries and messages off the chip of a site whose cores begin at ``core``."""
    readers = {place // chip.cores_per_chip for place in range(core + own, core + count)}
    off = 0.0
    for i in range(own):
        held = min(chip.neurons_per_core, neurons - i * chip.neurons_per_core)
        off += spikes * held / neurons * len(readers - {(core + i) // chip.cores_per_chip})
    return spikes, spikes * (count - own), off


def _run(
    model: Any, inputs: Mapping[str, Tensor], layers: Mapping[str, nn.Module], spikes: bool
) -> tuple[dict[str, float], dict[str, tuple[Tensor, Tensor]]]:
    """Return the spikes of every site for one token or image, and one channel of the maps around convolutions."""
    maps: dict[str, tuple[Tensor, Tensor]] = {}

    def see(path: str, _: nn.Module, arguments: Sequence[Tensor], output: Tensor) -> None:
        maps[path] = arguments[0][:1, 0], output[:1, 0]

    maps_of = {path: layer for path, layer in layers.items() if not isinstance(layer, SpikingLinear)}
    with hooked([layer.register_forward_hook(partial(see, path)) for path, layer in maps_of.items()]):
        if not spikes:
            with model.simulation.using(network="ann"):
                model(**inputs)
            return {}, maps
        with model.simulation.using(network="snn"), record(model) as found:
            model(**inputs)
    first = inputs["input_ids"].numel() if "input_ids" in inputs else len(next(iter(inputs.values())))
    return {path: site.spikes / first for path, site in found.sites.items()}, maps
