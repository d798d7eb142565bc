"""Checksums of weights: safetensors does not notice a bit that has flipped."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fas.errors import CheckpointError
from fas.storage.foreign import is_plain_name

SUMS = "SHA256SUMS"


def write_sums(directory: Path) -> None:
    """Write ``SHA256SUMS`` for the safetensors of a directory, as ``sha256sum`` does; nothing where there are none."""
    files = sorted(directory.glob("*.safetensors"))
    if files:
        lines = [f"{_digest(file)}  {file.name}\n" for file in files]
        (directory / SUMS).write_text("".join(lines), encoding="utf-8")


def check_sums(directory: Path) -> None:
    """Compare the safetensors of a directory with its ``SHA256SUMS``; without that file nothing is compared.

    Raises:
        CheckpointError: a file that is missing or differs, or checksums that are none.
    """
    place = directory / SUMS
    if not place.is_file():
        return
    for line in place.read_text(encoding="utf-8", errors="replace").splitlines():
        stated, _, name = line.partition("  ")
        if not is_plain_name(name) or len(stated) != 64:
            raise CheckpointError(
                f"{place} has the line {line[:80]!r}, which is not a checksum and a name: copy it again"
            )
        file = directory / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: {SUMS} names it; copy the model again")
        found = _digest(file)
        if found != stated:
            raise CheckpointError(
                f"{file} has changed since it was written: its SHA-256 is {found[:12]}…, {SUMS} says {stated[:12]}…; "
                f"copy the model again, or delete {SUMS} if you changed the file on purpose"
            )


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
