"""Rows of data sets on the Hugging Face hub."""

from __future__ import annotations

from typing import Any

from fas.errors import DataError, MissingExtraError


def hub_rows(source: str, split: str) -> list[Any]:
    """Return the rows of one split of a data set.

    Args:
        source: ``name`` or ``name:config``.
        split: its part.

    Raises:
        DataError: no such data set, or no rows.
        MissingExtraError: the datasets library is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"hub data set {source!r} needs the datasets library: pip install 'fas[data]'"
        ) from error
    name, _, config = source.partition(":")
    try:
        rows = list(datasets.load_dataset(name, config or None, split=split))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{source!r}: no such file or directory here, and hub data set {name!r} "
            f"(config {config or None!r}, split {split!r}) cannot be loaded: {error}"
        ) from error
    if not rows:
        raise DataError(f"hub data set {source!r} has no rows in split {split!r}")
    return rows
