"""Neuromorphic chips as a few numbers with their sources, read from a file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

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
    return sorted(entry.name.removesuffix(".toml") for entry in _folder().iterdir() if entry.name.endswith(".toml"))


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
    own = Path(name)
    if str(name) in available_chips():
        text = (_folder() / f"{name}.toml").read_text(encoding="utf-8")
    elif own.is_file():
        text = own.read_text(encoding="utf-8")
    else:
        raise ValueError(f"no chip {str(name)!r}: choose one of {', '.join(available_chips())}, or name a TOML file")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{name} is no TOML file: {error}") from None
    return _chip(own.stem, table)


def _folder() -> Any:
    return files("fas") / "export" / "chips"


def _chip(name: str, table: Mapping[str, Any]) -> Chip:
    for key in ("title", "reference"):
        if not isinstance(table.get(key), str):
            raise DataError(f"chip {name} has no {key}: say what it stands for, as a string")
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
    if not isinstance(entry, dict) or not {"value", "unit", "source"} <= set(entry):
        raise DataError(f"{where} needs value, unit and source, got {entry!r}")
    extra = set(entry) - {"value", "unit", "source", "assumption"}
    if extra:
        raise DataError(f"{where} has unknown entries {', '.join(sorted(extra))}")
    value, least = entry["value"], 0 if unit == "1" else 1
    if type(value) is not int or value < least or (unit == "1" and value > 1):
        raise DataError(f"{where} is {value!r}; expected {'0 or 1' if unit == '1' else 'a whole number above zero'}")
    if entry["unit"] != unit:
        raise DataError(f"{where} is in {entry['unit']!r}; expected {unit!r}")
    if not str(entry["source"]).strip():
        raise DataError(f"{where} has no source: say where the figure is from, or that it is an assumption")
