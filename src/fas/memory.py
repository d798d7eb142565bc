"""Resident memory of this process: how much there was, and giving back what is free."""

from __future__ import annotations

import ctypes
import resource
import sys


def peak_resident() -> int:
    """Return the most resident memory that this process has had so far, in bytes, mapped files included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def give_back() -> None:
    """Have the C library return freed memory to the system.

    glibc keeps freed tensors of up to 32 MiB for itself; between those that stay the next ones find no place, and a
    walk seems to need more memory with every block. Other libraries return it by themselves.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
