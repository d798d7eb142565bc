"""Memory of this process: how much there was, giving back what is free, and fewer rows where it is not enough."""

from __future__ import annotations

import ctypes
import logging
import resource
import sys
from collections.abc import Callable
from typing import TypeVar

from fas.errors import FASError, first_sentence

logger = logging.getLogger(__name__)

Found = TypeVar("Found")


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


def with_fewer_rows(batch_size: int, run: Callable[[int], Found]) -> Found:
    """Return what a function of the batch size gives, with half of it again and again where memory is not enough.

    Raises:
        FASError: a single row was too much.
    """
    while True:
        try:
            return run(batch_size)
        except (RuntimeError, MemoryError) as error:
            batch_size = fewer_rows(batch_size, error)


def fewer_rows(batch_size: int, error: Exception) -> int:
    """Return half a batch size to try again with, where an error says that memory was not enough.

    Args:
        batch_size: rows of the calls that failed.
        error: what they raised; raised again if it is another one.

    Raises:
        FASError: a single row was too much.
    """
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
        raise error
    if batch_size == 1:
        raise FASError(
            f"out of memory: {first_sentence(error)}: give a smaller batch size (--batch-size), a shorter window "
            "(--window) or another device (--device)"
        ) from error
    clear_device_cache(garbage_collection=True)
    logger.warning("out of memory with %d rows at a time: continuing with %d", batch_size, batch_size // 2)
    return batch_size // 2
