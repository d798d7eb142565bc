"""Source text of the running Python's standard library: a corpus that every installation has."""

import hashlib
import sysconfig
from pathlib import Path, PurePosixPath
from typing import Literal

# Installed packages are not the standard library; tests and the generated tables of `encodings`
# and `pydoc_data` are large and unlike ordinary code.
_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"})


def stdlib_text(split: Literal["train", "heldout"]) -> list[str]:
    """Return the texts of one split's `*.py` files, sorted by relative path.

    A file belongs to `heldout` when sha256 of its POSIX path relative to the standard library,
    read as a big-endian integer, is divisible by 20. The path alone decides, so a file held out
    under one Python version is held out under all of them. Files that are not valid UTF-8 are skipped.

    Raises:
        ValueError: `split` is neither "train" nor "heldout".

    Example:
        >>> documents = stdlib_text("heldout")
        >>> all(isinstance(document, str) for document in documents)
        True
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split must be 'train' or 'heldout', got {split!r}")
    root = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    documents = []
    for name in names:
        path = PurePosixPath(name)
        if _LEFT_OUT.intersection(path.parts) or _is_heldout(name) != (split == "heldout"):
            continue
        try:
            documents.append((root / path).read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
    return documents


def _is_heldout(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest(), "big") % 20 == 0
