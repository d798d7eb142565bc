"""Prices of operations: constants with units and sources, in TOML files of the library or the user's own."""

from __future__ import annotations

import math
import sys
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from fas.errors import DataError

MODELS: Any = files("fas") / "energy" / "models"
"""Folder of the cost models that come with the library."""
_NEEDED = frozenset({"value", "unit", "source"})
_UNITS = {
    **dict.fromkeys(("fp32_add", "fp32_multiply", "fp16_add", "fp16_multiply", "int8_multiply"), "pJ"),
    **dict.fromkeys(("int8_add", "int16_add", "int32_add"), "pJ"),
    **dict.fromkeys(("synaptic_operation", "neuron_update", "event", "evaluation"), "pJ"),
    **dict.fromkeys(("weight_read", "state_access", "event_transport", "activation_transport"), "pJ/bit"),
}


@dataclass(frozen=True)
class Constant:
    """One price.

    Attributes:
        value: in ``unit``.
        unit: pJ, or pJ/bit.
        source: where it is from.
        unverified: whether the source has not been seen, or there is none.
        why: then, why it is there all the same.
    """

    value: float
    unit: str
    source: str
    unverified: bool = False
    why: str = ""


@dataclass(frozen=True)
class Prices:
    """A cost model: what operations take on some hardware.

    A constant that is absent has no price; what would need it is listed as unpriced and not taken for free.

    Attributes:
        name: of the model, the name of its file.
        title: what hardware it stands for.
        reference: publication that its constants are from.
        constants: by name.
    """

    name: str
    title: str
    reference: str
    constants: Mapping[str, Constant]

    def get(self, *names: str) -> float | None:
        """Return the sum of some constants, None if one of them is absent."""
        found = [self.constants.get(name) for name in names]
        return None if None in found else math.fsum(constant.value for constant in found if constant is not None)

    @property
    def unverified(self) -> list[str]:
        """Names of constants without a source that has been seen."""
        return [name for name, constant in self.constants.items() if constant.unverified]


def load_prices(name: str | Path) -> Prices:
    """Read a cost model.

    Args:
        name: one that comes with the library (``45nm``), or a file of one's own (TOML: ``title``, ``reference``,
            and a table ``constants.<name>`` with ``value``, ``unit`` and ``source`` for each price).

    Raises:
        ValueError: no such model or file; the known ones are listed.
        DataError: a file that is not a cost model: the constant and the rule are named.

    Example:
        >>> load_prices("45nm").constants["fp32_add"].value
        0.9
    """
    stem, title, reference, constants = read_described(name, MODELS, "cost model", _UNITS, ("unverified", "why"))
    for key, entry in constants.items():
        where, value = f"constant {key} of cost model {stem}", entry["value"]
        # Whole numbers can be larger than any real one.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
            raise DataError(f"{where} has value {value!r}; expected a number of at least 0")
        if entry.get("unverified") and not entry.get("why"):
            raise DataError(f"{where} is unverified: say why it is there in an entry 'why'")
    found = {key: Constant(**{**entry, "value": float(entry["value"])}) for key, entry in constants.items()}
    return Prices(stem, title, reference, found)


def shipped(folder: Any) -> list[str]:
    """Return the names of the files in a folder of a package, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_described(
    name: str | Path, folder: Any, kind: str, units: Mapping[str, str], further: Collection[str]
) -> tuple[str, str, str, dict[str, Any]]:
    """Read a file with ``title``, ``reference`` and tables ``constants.<name>``.

    Args:
        name: of a file in the folder, or the path of another one.
        folder: of a package (``importlib.resources``).
        kind: what the file describes, for errors.
        units: of the constants that there may be, by name.
        further: entries that a constant may have besides value, unit and source.

    Returns:
        Name of the file without its ending, title, reference, and the tables of the constants by name.

    Raises:
        ValueError: neither a known name nor a file; the known ones are listed.
        DataError: no TOML file, one without title, reference or constants, or a constant that is unknown, lacks value,
            unit or source, or has another unit or entries that nobody reads.
    """
    own: Any = Path(name)
    stem, known = own.stem, shipped(folder)
    if str(name) in known:
        own = folder / f"{name}.toml"
    elif not own.is_file():
        raise ValueError(f"no {kind} {str(name)!r}: choose one of {', '.join(known)}, or name a TOML file")
    try:
        table = tomllib.loads(own.read_text(encoding="utf-8"))
    # RecursionError: brackets in brackets.
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{name} is not a TOML file: {error}") from None
    for key in ("title", "reference"):
        if not isinstance(table.get(key), str):
            raise DataError(f"{kind} {stem} has no {key}: say what it stands for, as a string")
    constants = table.get("constants")
    if not isinstance(constants, dict) or not constants:
        raise DataError(f"{kind} {stem} has no constants: give tables [constants.<name>] for {', '.join(units)}")
    for key, entry in constants.items():
        where = f"constant {key} of {kind} {stem}"
        if key not in units:
            raise DataError(f"{where} is unknown; the known ones are {', '.join(units)}")
        if not isinstance(entry, dict) or not set(entry) >= _NEEDED:
            raise DataError(f"{where} needs value, unit and source, got {entry!r}")
        if extra := set(entry) - _NEEDED - set(further):
            raise DataError(f"{where} has unknown entries {', '.join(sorted(extra))}")
        if not str(entry["source"]).strip():
            raise DataError(f"{where} has no source: say where the figure is from")
        if entry["unit"] != units[key]:
            raise DataError(f"{where} is in {entry['unit']!r}; expected {units[key]}")
    return stem, table["title"], table["reference"], constants
