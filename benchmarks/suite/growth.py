"""How the cost of a pass grows with time steps, sequence length, width and depth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import GPT2Config

from benchmarks.suite.absent import AbsentError
from benchmarks.suite.interleave import Timing, interleaved
from benchmarks.suite.roofline import synchroniser
from benchmarks.suite.sizes import from_config, random_tokens
from benchmarks.suite.stock import Stock
from benchmarks.suite.subjects import Subject
from fas.methods.fas import FAS
from fas.types import Progress

_HEAD = 64  # width of an attention head, as in GPT-2


@dataclass(frozen=True)
class Point:
    """One shape: a GPT-2 with random weights and a small vocabulary, so that its blocks are the cost.

    Attributes:
        timesteps: T.
        sequence: tokens of the prompt S.
        width: d.
        depth: blocks.
    """

    timesteps: int = 4
    sequence: int = 64
    width: int = 256
    depth: int = 4


AXES = {
    "timesteps": (2, 4, 8, 16),
    "sequence": (32, 64, 128, 256),
    "width": (128, 256, 512),
    "depth": (2, 4, 8),
}


def measure(
    subjects: Sequence[Subject],
    *,
    start: Point | None = None,
    axes: dict[str, tuple[int, ...]] | None = None,
    rounds: int = 3,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[str, Point, dict[str, Timing]]]:
    """Time the pass over a prompt (batch 1) along each axis, the others held at ``start``.

    Thresholds are the largest magnitudes: nothing that is timed here depends on how well they fit.

    Args:
        subjects: what to time; those that are absent are left out.
        start: where the axes meet.
        axes: values of each field of ``Point``.
        rounds: samples of each.
        device: where; the CPU if None.
        progress: told what runs.

    Yields:
        Axis, point and timings by subject. A point where axes meet is measured anew on each.
    """
    device = torch.device("cpu") if device is None else device
    for axis, values in (AXES if axes is None else axes).items():
        for value in values:
            point = replace(Point() if start is None else start, **{axis: value})
            yield axis, point, _timed(subjects, point, rounds, device, progress)


def _timed(
    subjects: Sequence[Subject], point: Point, rounds: int, device: torch.device, progress: Progress | None
) -> dict[str, Timing]:
    config = GPT2Config(
        vocab_size=256, n_positions=point.sequence, n_embd=point.width, n_layer=point.depth,
        n_head=max(1, point.width // _HEAD), bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    method = FAS(timesteps=point.timesteps, neuron="signed_if", coarse=False, fine=False)
    stock = Stock("growth", method, tokens=point.sequence, device=device, source=from_config(config))
    ids = random_tokens(stock.dense, 1, point.sequence, seed=2).to(device)
    programs = {}
    for subject in subjects:
        try:
            contender = subject.make(stock, subject.name)
        except AbsentError:
            continue
        programs[subject.name] = lambda contender=contender: contender.prefill(ids)
    return interleaved(programs, rounds=rounds, progress=progress, synchronise=synchroniser(device))


def exponent(values: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the slope of log seconds over log value: 1 for linear growth, 0 for none (least squares)."""
    x, y = [math.log(value) for value in values], [math.log(value) for value in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)
