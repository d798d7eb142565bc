"""Refusing values of options that are out of their range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def check_whole(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Refuse a value that is not a whole number within bounds.

    Raises:
        ValueError: such a value; the message names it.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} is {value!r}; expected a whole number {bounds}")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Refuse a value that is none of several.

    Raises:
        ValueError: such a value; the message names it.
    """
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(str, choices))}")


def check_number(name: str, value: Any, expected: str, *, above: bool = False, most: float = 1e308) -> None:
    """Refuse a value that is neither None nor a finite number of at least 0.

    Args:
        name: of the value.
        value: to be looked at.
        expected: what the message says of it.
        above: whether 0 is refused too.
        most: the largest that is not refused.

    Raises:
        ValueError: such a value; the message names it.
    """
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= most or (above and value == 0):
        raise ValueError(f"{name} is {value!r}; expected {expected}")
