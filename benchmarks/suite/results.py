"""The file of results: complete after every figure, so that an interrupted run keeps what it has."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fas.errors import DataError
from fas.storage.directory import write_text
from fas.types import Measurement, finite


def write(path: Path, machine: dict[str, Any], rows: Sequence[Measurement]) -> None:
    """Write all results; whoever reads the file sees the old ones or the new ones, never a part."""
    document = {"machine": machine, "rows": [finite(row.to_dict()) for row in rows]}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def read(path: Path) -> tuple[dict[str, Any], list[Measurement]]:
    """Return machine and rows of a file that ``write`` has made.

    Raises:
        DataError: another kind of file.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = [Measurement(**{**row, "value": _number(row["value"])}) for row in document["rows"]]
        return document["machine"], rows
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise DataError(f"{path} holds no results of a benchmark ({error}): name one that make bench wrote") from None


def _number(value: float | None) -> float:
    return math.nan if value is None else value
