"""What a fit looks at: the activations of each channel in order and in groups, ends alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

# Groups of a channel's sorted activations, and how many at either end stand alone: rare large values carry much of
# the variance and decide about the range.
GROUPS, ENDS = 256, 48
# Channels fitted together, so that their points stay in the cache.
BLOCK = 64

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Points:
    """Means of groups of equally ranked activations.

    Attributes:
        values: [m, C], ascending in every channel.
        shares: how much of the activations each stands for, (m, 1); they add up to 1.
    """

    values: Tensor
    shares: Tensor

    def mean(self, of: Tensor) -> Tensor:
        """Return the mean over all activations of a quantity [m, C] given at the points, (C,)."""
        return (self.shares * of).sum(0)

    def variance(self, of: Tensor) -> Tensor:
        """Return the variance likewise."""
        return self.mean((of - self.mean(of)).square())


def points(x: Tensor, *, groups: int = GROUPS, ends: int = ENDS) -> Points:
    """Return the points of activations [n, C]; up to groups + 2 · ends of them are their own points.

    To sort once and then look at some hundred points costs a fit a tenth of looking at thousands of activations at
    every step, and moves no level by more than the width of a group.
    """
    columns = x.T.contiguous()
    if x.device.type == "cpu":
        # Several times as fast as torch's, which moves indices along.
        columns = torch.from_numpy(np.sort(columns.numpy(), axis=1))
    else:
        columns = columns.sort(1).values
    n = len(x)
    if n <= groups + 2 * ends:
        return Points(columns.T.contiguous(), columns.new_full((n, 1), 1 / n))
    inner = torch.linspace(ends, n - ends, groups + 1).round().long()
    edges = torch.cat([torch.arange(ends), inner, torch.arange(n - ends + 1, n + 1)]).to(x.device)
    sums = torch.nn.functional.pad(columns.cumsum(1, dtype=torch.float64), (1, 0))[:, edges]
    sizes = edges.diff()
    values = (sums.diff(dim=1) / sizes).to(x.dtype).T.contiguous()
    return Points(values, (sizes / n).to(x.dtype).unsqueeze(1))


def blocks(channels: int) -> list[slice]:
    """Return the channels in blocks of ``BLOCK``."""
    return [slice(first, min(first + BLOCK, channels)) for first in range(0, channels, BLOCK)]


def each(work: Callable[[_Part], _Result], parts: Iterable[_Part]) -> list[_Result]:
    """Return the results for parts in their order, over as many threads as torch has.

    Every part runs on one thread. torch's own threads divide each operation and wait for each other after it, which
    takes blocks of this size twenty times as long as soon as another process wants one of the processors.
    """
    todo, threads = list(parts), torch.get_num_threads()
    if threads == 1 or len(todo) < 2:
        return [work(part) for part in todo]
    try:
        with ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1)) as pool:
            return list(pool.map(torch.no_grad()(work), todo))
    finally:
        torch.set_num_threads(threads)
