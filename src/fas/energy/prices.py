"""Prices of operations: constants with their sources, read from a file."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from fas.energy.constants import check_described, read_described, shipped
from fas.errors import DataError

_UNITS = {
    **dict.fromkeys(
        ("fp32_add", "fp32_multiply", "fp16_add", "fp16_multiply", "int8_add", "int8_multiply", "int32_add"), "pJ"
    ),
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


def available_prices() -> list[str]:
    """Return the names of the cost models that come with the library, sorted."""
    return shipped(_folder())


def load_prices(name: str | Path) -> Prices:
    """Read a cost model.

    Args:
        name: one of ``available_prices()``, or the path of a file of one's own (TOML: ``title``, ``reference``,
            and a table ``constants.<name>`` with ``value``, ``unit`` and ``source`` for each price).

    Raises:
        ValueError: no such model or file; the known ones are listed.
        DataError: a file that is no cost model: the constant and the rule are named.

    Example:
        >>> load_prices("45nm").constants["fp32_add"].value
        0.9
    """
    return _prices(*read_described(name, _folder(), "cost model"))


def _folder() -> Any:
    return files("fas") / "energy" / "models"


def _prices(name: str, table: dict[str, Any]) -> Prices:
    constants = table.get("constants")
    if not isinstance(constants, dict) or not constants:
        raise DataError(f"cost model {name} has no constants: give tables [constants.<name>] for {', '.join(_UNITS)}")
    return Prices(name, table["title"], table["reference"], {k: _constant(name, k, v) for k, v in constants.items()})


def _constant(model: str, name: str, entry: Any) -> Constant:
    where = f"constant {name} of cost model {model}"
    if name not in _UNITS:
        raise DataError(f"{where} is unknown; the known ones are {', '.join(_UNITS)}")
    check_described(where, entry, ("unverified", "why"))
    value = entry["value"]
    # Whole numbers can be larger than any real one.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise DataError(f"{where} has value {value!r}; expected a number of at least 0")
    if entry["unit"] != _UNITS[name]:
        raise DataError(f"{where} is in {entry['unit']!r}; expected {_UNITS[name]}")
    if entry.get("unverified") and not entry.get("why"):
        raise DataError(f"{where} is unverified: say why it is there in an entry 'why'")
    return Constant(**{**entry, "value": float(value)})
