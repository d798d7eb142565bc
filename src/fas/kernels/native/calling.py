"""Calling machine code that numba has made, on torch's own threads.

A kernel is a C function of one argument, an array of 64-bit whole numbers: word 0 is the next piece of work, which
every thread claims atomically, the others are sizes and addresses. It runs on the OpenMP team that torch itself
uses, so that no second pool of threads competes for the cores. numba's own parallel loops would bring one.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import struct
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from fas._version import __version__

_LIBRARY = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
# Below this many bytes to move, a second thread costs more than it saves.
_BYTES_PER_THREAD = 1 << 18
# A block of this size comes fresh from the system each time (the most that glibc keeps), page by page.
_FRESH = 1 << 25
_LARGE_PAGE, _ADVICE = 1 << 21, 14


def _claim(typing: Any, work: Any) -> Any:
    """Return word 0 and add one to it, atomically."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        address = builder.bitcast(arguments[0], word.as_pointer())
        return builder.atomic_rmw("add", address, ir.Constant(word, 1), "monotonic")

    return types.int64(types.voidptr), generate


def _at(typing: Any, address: Any) -> Any:
    """Return a whole number as an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


# What these return inside of a kernel is not what the functions above return to numba.
claim: Any = intrinsic(_claim)
at: Any = intrinsic(_at)


@njit
def claimed(work: Any, number: Any, piece: Any) -> Any:
    """Yield which of so many things fall to this thread, a piece at a time."""
    begin = claim(work) * piece
    while begin < number:
        # numba has no ``yield from``.
        for i in range(begin, min(number, begin + piece)):  # noqa: UP028
            yield i
        begin = claim(work) * piece


@njit(inline="always")
def real_word(work: Any, index: Any) -> Any:
    """Return a word that holds the bits of a float64 number (``bits``)."""
    return carray(work, index + 1, np.float64)[index]


@njit(inline="always")
def words(work: Any, size: int) -> Any:
    """Return the words of a kernel's argument, inside a kernel."""
    return carray(work, size, np.int64)


@functools.cache
def bits(value: float) -> int:
    """Return the bits of a float64 number as a whole number."""
    found: int = struct.unpack("q", struct.pack("d", value))[0]
    return found


@functools.cache
def _sources(folder: Path) -> str:
    """Return a short digest of this version and of all files that kernels share."""
    files = b"".join(file.read_bytes() for file in sorted(folder.glob("*.py")))
    return hashlib.sha256(__version__.encode() + files).hexdigest()[:12]


def native(kernel: Callable[..., None]) -> Any:
    """Compile a kernel; the machine code is kept on disk for the next process."""
    # numba looks for changes in the kernel's own file alone, not in what it calls.
    kernel.__qualname__ += f"-{_sources(Path(kernel.__code__.co_filename).parent)}"
    # A division by zero is an infinity, as in torch: a check would keep loops from being vectorised.
    return cfunc(types.void(types.voidptr), cache=True, error_model="numpy")(kernel)


def run(kernel: Any, moved: int, *work: int) -> None:
    """Run a kernel to the end.

    Args:
        kernel: from ``native``.
        moved: bytes that it reads and writes, by which the number of threads is chosen.
        work: its words from the second on.
    """
    start(kernel, moved, array("q", (0, *work)))


def start(kernel: Any, moved: int, words_of_all: array[int]) -> None:
    """Run a kernel on all of its words, the first of which counts pieces of work from 0."""
    argument, _ = words_of_all.buffer_info()
    threads = min(torch.get_num_threads(), moved // _BYTES_PER_THREAD)
    if threads > 1:
        _team()(kernel.address, argument, threads, 0)
    else:
        kernel.ctypes(argument)


@functools.cache
def _team() -> Any:
    """Return the entry of the OpenMP library that torch is linked with: run on so many threads and wait."""
    entry = ctypes.CDLL(str(_LIBRARY)).GOMP_parallel
    entry.argtypes, entry.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return entry


def written(out: torch.Tensor) -> torch.Tensor:
    """Return a tensor that is about to be written, in large pages if it is large and new.

    To be given memory in pages of 4 KiB takes longer than to fill it. Linux is asked for pages of 2 MiB, which is
    advice: where it is not taken, nothing else changes.
    """
    if out.nbytes >= _FRESH and sys.platform == "linux":
        begin = -(-out.data_ptr() // _LARGE_PAGE) * _LARGE_PAGE
        end = (out.data_ptr() + out.nbytes) // _LARGE_PAGE * _LARGE_PAGE
        _system().madvise(begin, end - begin, _ADVICE)
    return out


@functools.cache
def _system() -> Any:
    library = ctypes.CDLL(None)
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library


def unavailable() -> str:
    """Return why kernels cannot run here, empty if they can."""
    try:
        _team()
    except (OSError, AttributeError):
        return f"torch here is not built on the OpenMP library of GNU or Intel ({_LIBRARY.name} has no GOMP_parallel)"
    return ""
