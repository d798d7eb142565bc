"""Lengths of time, sizes in memory and values as people write them."""

from __future__ import annotations

import ast
import re
from typing import Any

_UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}


def span(seconds: float) -> str:
    """Return a length of time in the unit that fits it."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def size(count: float) -> str:
    """Return bytes in the unit that fits them."""
    unit = next((unit for unit, bytes in _UNITS.items() if count >= bytes), "KiB")
    return f"{count / _UNITS[unit]:.1f} {unit}"


def bytes_of(text: str) -> int:
    """Return the bytes of a size such as ``2GiB`` or ``512MiB``.

    Raises:
        ValueError: not such a size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KiB|MiB|GiB)", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a size such as 512MiB or 2GiB")
    return int(float(found[1]) * _UNITS[found[2]])


def value_of(text: str) -> Any:
    """Return the number, truth value, list or other literal that a text writes, else the text."""
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        return text
