"""The tiny models of the command line's tests."""

from __future__ import annotations

from cli.conftest import dense, folder, run, snn, text

__all__ = ["dense", "folder", "run", "snn", "text"]
