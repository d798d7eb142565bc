"""Digests of data, weights and files: whether an interrupted run had the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

# Rows that stand for a data set in its digest.
_SAMPLE = 10_000


def digest(content: Iterable[bytes]) -> str:
    """Return the SHA-256 of pieces, in hexadecimal."""
    found = hashlib.sha256()
    for piece in content:
        found.update(piece)
    return found.hexdigest()


def pieces(batches: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """Yield names, types, shapes and contents of what batches (or the state of a model) hold."""
    for batch in batches:
        for name, value in batch.items():
            if hasattr(value, "__array__"):
                tensor = torch.as_tensor(value)
                yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
                yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            else:
                yield f"{name} {value!r}".encode()


def digests(batches: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a digest of every row of every tensor in some batches."""
    return [digest(pieces([{"": row}])) for batch in batches for rows in batch.values() for row in rows]


def digest_rows(dataset: Any) -> str:
    """Return the digest of a data set: its length and up to 10,000 rows, evenly spread.

    A data set whose rows change by chance names itself by an attribute ``fingerprint``.
    """
    named = getattr(dataset, "fingerprint", None) or getattr(dataset, "_fingerprint", None)
    if isinstance(named, str):
        return named
    chosen = range(0, len(dataset), max(1, -(-len(dataset) // _SAMPLE)))
    return digest([str(len(dataset)).encode(), *pieces(dict(sorted(dataset[i].items())) for i in chosen)])


def states(files: Iterable[Path]) -> list[list[Any]]:
    """Return what tells files from others of the same name, or from themselves before a change: size and time."""
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
