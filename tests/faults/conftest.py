"""The tiny models of the command line's tests, and ways to run out of space."""

from __future__ import annotations

import contextlib
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli.conftest import classifier, dense, folder, run, snn, table, text

__all__ = ["classifier", "dense", "folder", "run", "snn", "table", "text"]

Limited = Callable[[int], contextlib.AbstractContextManager[None]]


@pytest.fixture
def limited() -> Limited:
    """Let no file grow beyond so many bytes while a block runs: works for every user, unlike a small disk."""

    @contextlib.contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Python ignores the signal that comes with it, and writing fails.
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a file system in memory with options, such as ``size=24k``; skipped where mounting is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no program mount")
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return place

    yield mount
    # Lazily: torch leaves the file open whose writing failed.
    subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Return every file below a place, hidden ones too; of a file, itself."""

    def read(place: Path) -> dict[str, bytes]:
        files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
        return {str(path.relative_to(place)): path.read_bytes() for path in files}

    return read
