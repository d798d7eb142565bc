"""What long work has finished, on the disk, for a run that was interrupted to resume from."""

from __future__ import annotations

import json
import logging
import os
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from fas.errors import CheckpointError
from fas.storage.directory import write_tensors, write_text

logger = logging.getLogger(__name__)

Once = Callable[[str, Callable[[], Any]], Any]
"""Does a part of some work, named by a key, or returns what it gave before; a JSON value either way."""


def directly(key: str, work: Callable[[], Any]) -> Any:
    """Do a part and keep nothing."""
    return work()


class Run:
    """A file of JSON lines: what the result depends on, then ``[key, value, tensors]`` for each part as it is finished.

    Tensors of a part lie in a file beside the journal, which is whole before the line that names it. A line that was
    not completed (a kill, a full disk) is cut off. Every line is on the disk before the next part begins.

    Args:
        file: of the journal.
        fingerprint: what the result depends on, in JSON types.
        refuse: whether the parts of another run are an error. Otherwise they are left alone until the first part of
            this run is finished, and removed then: a run that ends earlier, because its batches do not fit into
            memory, leaves what one with smaller batches has found.

    Attributes:
        entries: values by key, in the order in which parts were finished.

    Raises:
        CheckpointError: another run's parts, where they are refused (what differs is named), or a damaged file.
        OSError: a file that cannot be read.
    """

    def __init__(self, file: Path, fingerprint: Mapping[str, Any], *, refuse: bool = False) -> None:
        self.file, self.entries = file, dict[str, Any]()
        self._fingerprint: dict[str, Any] = json.loads(json.dumps(dict(fingerprint)))
        self._tensors: dict[str, str] = {}
        self._lines, self._other = 0, ""
        content = file.read_bytes() if file.is_file() else b""
        lines = content.splitlines(keepends=True)
        known = _parsed(lines[0]) if lines else None
        self._begun = known == self._fingerprint
        damage = CheckpointError(f"{file} is damaged: remove {file.parent} and start from the beginning")
        if refuse and lines and not isinstance(known, dict):
            raise damage
        if isinstance(known, dict) and not self._begun:
            name = next(k for k in {**known, **self._fingerprint} if known.get(k) != self._fingerprint.get(k))
            before, now = (reprlib.repr(x.get(name)) for x in (known, self._fingerprint))
            self._other = f"{file} was begun by another run: its {name} is {before} and not {now}"
            if refuse:
                raise CheckpointError(f"{self._other}; resume it with the same command, or remove {file.parent}")
        whole = len(lines[0]) if self._begun else 0
        for line in lines[1:] if self._begun else ():
            entry = _parsed(line)
            if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str)):
                if refuse and line.endswith(b"\n"):
                    raise damage
                os.truncate(file, whole)
                break
            self._note(*entry)
            whole += len(line)
        if self.entries:
            logger.warning("resuming: %d parts are done (%s)", len(self.entries), file)

    def _note(self, key: str, value: Any, tensors: str | None) -> None:
        self._lines += 1
        self.entries[key] = value
        if tensors is not None:
            self._tensors[key] = tensors

    def begin(self) -> None:
        """Remove the parts of another run and say of which one those to come are; done by the first ``add`` as well."""
        if self._begun:
            return
        if self._other:
            logger.warning("%s; starting from the beginning", self._other)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, json.dumps(self._fingerprint) + "\n")
        for left in self.file.parent.glob(f"{self.file.stem}-*.safetensors"):
            left.unlink()
        self._begun = True

    def add(self, key: str, value: Any, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Keep what a part has given; a part that is given again takes the place of the earlier one.

        Raises:
            OSError: disk full, no permission.
        """
        self.begin()
        place, before = None, self._tensors.get(key)
        if tensors:
            place = f"{self.file.stem}-{self._lines:05d}.safetensors"
            write_tensors(self.file.with_name(place), tensors)
        with self.file.open("ab") as file:
            end = file.tell()
            try:
                file.write(json.dumps([key, value, place]).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
        self._note(key, value, place)
        if before is not None:
            self.file.with_name(before).unlink()

    def tensors(self, key: str) -> dict[str, Tensor]:
        """Return the tensors of a part that is finished."""
        place = self._tensors.get(key)
        return {} if place is None else load_file(self.file.with_name(place))

    def part(self, name: str) -> Parts:
        """Return the parts of one stage of the work."""
        return Parts(self, name)

    def remove(self) -> None:
        """Forget everything: the whole result is there."""
        if not self._begun:
            return
        self.file.unlink(missing_ok=True)
        for place in self._tensors.values():
            self.file.with_name(place).unlink(missing_ok=True)
        self.entries.clear()
        self._tensors.clear()
        self._begun = False


@dataclass(frozen=True)
class Parts:
    """The parts of one stage of a run, by names that other stages may have too."""

    run: Run
    name: str

    @property
    def directory(self) -> Path:
        """Where the stage keeps files of its own."""
        return self.run.file.with_name(f"{self.run.file.stem}-{self.name.replace(' ', '-')}")

    def found(self, part: str) -> tuple[Any, dict[str, Tensor]] | None:
        """Return what an earlier run has found in a part, value and tensors; None if it is still to do."""
        key = f"{self.name}: {part}"
        return (self.run.entries[key], self.run.tensors(key)) if key in self.run.entries else None

    def add(self, part: str, value: Any, tensors: Mapping[str, Tensor]) -> None:
        """Keep what has been found in a part."""
        self.run.add(f"{self.name}: {part}", value, tensors)


def _parsed(line: bytes) -> Any:
    """Return the content of a line, None of one that is not whole."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
