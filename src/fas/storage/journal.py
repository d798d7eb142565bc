"""What long work has finished, one JSON line per part, for a run that was killed to go on with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Once = Callable[[str, Callable[[], Any]], Any]
"""Does a part of some work, named by a key, or returns what it gave before; a JSON value either way."""


def directly(key: str, work: Callable[[], Any]) -> Any:
    """Do a part and keep nothing."""
    return work()


class Journal:
    """A file of JSON lines ``[key, value]``, appended to as parts are finished.

    A line that was not written to the end, as a kill or a full disk leaves it, and whatever stands behind it are
    taken away. Every line is on the disk before the next part begins.

    Args:
        file: of the journal; it is made with the first part.

    Attributes:
        entries: values by key, in the order in which they were finished.

    Raises:
        OSError: a file that cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.entries: dict[str, Any] = {}
        content = file.read_bytes() if file.is_file() else b""
        whole = 0
        for line in content.splitlines(keepends=True):
            entry = _entry(line)
            if entry is None:
                break
            self.entries[entry[0]] = entry[1]
            whole += len(line)
        if whole < len(content):
            os.truncate(file, whole)

    def add(self, key: str, value: Any) -> None:
        """Keep the value of a part.

        Raises:
            OSError: disk full, no permission.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab") as file:
            before = file.tell()
            try:
                file.write(json.dumps([key, value]).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise
        self.entries[key] = value

    def remove(self) -> None:
        """Forget everything: the whole result is there."""
        if self.file.is_file():
            self.file.unlink()
        self.entries.clear()


def _entry(line: bytes) -> tuple[str, Any] | None:
    """Return key and value of a line, None of one that is not whole."""
    try:
        key, value = json.loads(line)
    except (ValueError, TypeError):
        return None
    return (key, value) if line.endswith(b"\n") and isinstance(key, str) else None
