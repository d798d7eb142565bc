"""Neuromorphic chips as a few numbers with their sources, read from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from fas.energy.constants import check_described, read_described, shipped
from fas.errors import DataError

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


def available_chips() -> list[str]:
    """Return the names of the chips that come with the library, sorted."""
    return shipped(_folder())


def load_chip(name: str | Path) -> Chip:
    """Read a chip.

    Args:
        name: one of ``available_chips()``, or a TOML file of the same form.

    Raises:
        ValueError: neither a known name nor a file.
        DataError: a file that describes no chip: the figure and the rule are named.

    Example:
        >>> load_chip("loihi2").neurons_per_core
        8192
    """
    return _chip(*read_described(name, _folder(), "chip"))


def _folder() -> Any:
    return files("fas") / "exporting" / "chips"


def _chip(name: str, table: Mapping[str, Any]) -> Chip:
    constants = table.get("constants")
    if not isinstance(constants, dict) or set(constants) != set(_UNITS):
        found = sorted(constants) if isinstance(constants, dict) else constants
        raise DataError(
            f"chip {name} has constants {found}; expected tables [constants.<name>] for {', '.join(_UNITS)}"
        )
    for key, entry in constants.items():
        _check(f"constant {key} of chip {name}", entry, _UNITS[key])
    return Chip(
        name,
        table["title"],
        table["reference"],
        **{key: entry["value"] for key, entry in constants.items()},
        sources={key: entry["source"] for key, entry in constants.items()},
        assumptions=tuple(key for key, entry in constants.items() if entry.get("assumption")),
    )


def _check(where: str, entry: Any, unit: str) -> None:
    check_described(where, entry, ("assumption",))
    value, least = entry["value"], 0 if unit == "1" else 1
    if type(value) is not int or value < least or (unit == "1" and value > 1):
        raise DataError(f"{where} is {value!r}; expected {'0 or 1' if unit == '1' else 'a whole number above zero'}")
    if entry["unit"] != unit:
        raise DataError(f"{where} is in {entry['unit']!r}; expected {unit!r}")
