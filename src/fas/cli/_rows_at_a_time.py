"""Fewer rows at a time where they do not fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fas.cli.program.output import Output
from fas.errors import FASError

Found = TypeVar("Found")


def with_fewer(output: Output, batch_size: int, run: Callable[[int], Found]) -> Found:
    """Return what a function of the batch size gives, with half of it again and again where memory is not enough.

    Args:
        output: of the command; is told.
        batch_size: rows to begin with.
        run: starts from the beginning each time.

    Raises:
        FASError: a single row was too much.
    """
    while True:
        try:
            return run(batch_size)
        except (RuntimeError, MemoryError) as error:
            batch_size = fewer(output, batch_size, error)


def fewer(output: Output, batch_size: int, error: Exception) -> int:
    """Return half a batch size to try again with, where an error says that memory was not enough.

    Args:
        output: of the command; is told.
        batch_size: rows of the calls that failed.
        error: what they raised; raised again if it is another one.

    Raises:
        FASError: a single row was too much.
    """
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    from fas.storage.foreign import first_sentence

    if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
        raise error
    if batch_size == 1:
        raise FASError(
            f"out of memory: {first_sentence(error)}: give a smaller --batch-size, a shorter --window or another "
            "--device"
        ) from error
    clear_device_cache(garbage_collection=True)
    output.remark(f"out of memory with {batch_size} rows at a time: going on with {batch_size // 2}")
    return batch_size // 2
