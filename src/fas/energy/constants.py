"""Constants with their units and sources, in TOML files that come with the library or are the user's own."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fas.errors import DataError

_NEEDED = frozenset({"value", "unit", "source"})


def shipped(folder: Any) -> list[str]:
    """Return the names of the files in a folder of a package, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_described(name: str | Path, folder: Any, kind: str) -> tuple[str, dict[str, Any]]:
    """Read a file with ``title``, ``reference`` and tables ``constants.<name>``.

    Args:
        name: of a file in the folder, or the path of another one.
        folder: of a package (``importlib.resources``).
        kind: what the file describes, for errors.

    Returns:
        Name of the file without its ending, and what it holds.

    Raises:
        ValueError: neither a known name nor a file; the known ones are listed.
        DataError: no TOML file, or one without title or reference.
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
        raise DataError(f"{name} is no TOML file: {error}") from None
    for key in ("title", "reference"):
        if not isinstance(table.get(key), str):
            raise DataError(f"{kind} {stem} has no {key}: say what it stands for, as a string")
    return stem, table


def check_described(where: str, entry: Any, further: Collection[str]) -> None:
    """Refuse a constant without value, unit or source, or with entries that nobody reads.

    Args:
        where: its name, for errors.
        entry: its table.
        further: entries that it may have besides.

    Raises:
        DataError: such a constant.
    """
    if not isinstance(entry, dict) or not set(entry) >= _NEEDED:
        raise DataError(f"{where} needs value, unit and source, got {entry!r}")
    extra = set(entry) - _NEEDED - set(further)
    if extra:
        raise DataError(f"{where} has unknown entries {', '.join(sorted(extra))}")
    if not str(entry["source"]).strip():
        raise DataError(f"{where} has no source: say where the figure is from")
