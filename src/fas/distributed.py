"""Several processes of torch.distributed: whose data is whose, putting together what each has, and losing one.

Nothing here starts processes: ``torchrun`` and ``accelerate launch`` do, and accelerate joins them. Without them every
function does what one process alone needs, which is nothing.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed

from fas.errors import FASError

# A process that waits longer for another one gives up: the other has died without being seen. A launcher sees at once
# that one of its own has died; this is for machines that vanish.
PATIENCE = timedelta(minutes=10)
# What gloo and NCCL say where another process is gone; neither has an error of its own for it.
_LOST = ("closed by peer", "reset by peer", "Timed out waiting", "Broken pipe", "Watchdog", "timed out", "NCCL error")


def join(device: str) -> None:
    """Join the processes that a launcher has started; nothing happens where there is one alone.

    Args:
        device: where models run; ``cpu`` talks over gloo, accelerators over their own library.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=device == "cpu", timeout=PATIENCE)


def place() -> tuple[int, int]:
    """Return this process's number and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def share(parts: int) -> range:
    """Return which of so many parts this process has: the n-th of equal stretches, in the order of processes."""
    rank, size = place()
    return range(parts * rank // size, parts * (rank + 1) // size)


def gathered(rows: Tensor) -> Tensor:
    """Return the rows [n, …] of all processes, in their order; n may differ from process to process.

    Raises:
        FASError: another process is gone.
    """
    if place()[1] == 1:
        return rows
    with lost_named():
        counts = _all(torch.tensor([len(rows)], device=rows.device))
        padded = rows.new_zeros(max(int(count) for count in counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        return torch.cat([part[: int(count)] for part, count in zip(_all(padded), counts, strict=True)])


@torch.no_grad()
def agree(tensors: Iterable[Tensor]) -> None:
    """Give tensors the values that they have in the first process: machines may differ in the last bit.

    Raises:
        FASError: another process is gone.
    """
    if place()[1] > 1:
        with lost_named():
            for tensor in tensors:
                distributed.broadcast(tensor, 0)


def check_same(what: str, content: Iterable[bytes], device: torch.device) -> None:
    """Stop where another process has something other than this one.

    Raises:
        FASError: contents differ, or another process is gone.
    """
    if place()[1] == 1:
        return
    digest = 0
    for piece in content:
        digest = zlib.crc32(piece, digest)
    with lost_named():
        found = [int(x) for x in _all(torch.tensor([digest], device=device))]
    others = [rank for rank, other in enumerate(found) if other != found[0]]
    if others:
        raise FASError(f"{what}: process {others[0]} has other ones than process 0; give every process the same")


def first_says(number: int, device: torch.device) -> int:
    """Return the number that the first process has."""
    if place()[1] == 1:
        return number
    said = torch.tensor([number], device=device)
    agree([said])
    return int(said)


@contextmanager
def lost_named() -> Iterator[None]:
    """Say what has happened where messages to other processes fail.

    Raises:
        FASError: another process is gone.
    """
    try:
        yield
    except RuntimeError as error:
        rank, size = place()
        if size == 1 or not any(word in str(error) for word in _LOST):
            raise
        raise FASError(
            f"process {rank} of {size} lost contact with another one, whose own message (or the launcher's) says why: "
            "run the same command again"
        ) from error


def _all(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(place()[1])]
    distributed.all_gather(parts, tensor)
    return parts
