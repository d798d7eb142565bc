"""How far chance takes perplexities and their ratios: intervals over the windows of a text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

CONFIDENCE = 0.95
_RESAMPLES = 2000

Windows = Sequence[Sequence[float]]
"""Negative log likelihood (nats) and scored tokens of every window."""


def standard_error(windows: Windows) -> float:
    """Return that of the perplexity, in the first order: PPL · SE of the mean over tokens; NaN for a single window."""
    nll, tokens = _columns(windows)
    if len(nll) < 2:
        return math.nan
    mean = nll.sum() / tokens.sum()
    spread = (nll - mean * tokens).square().sum() * len(nll) / (len(nll) - 1)
    return float(mean.exp() * spread.sqrt() / tokens.sum())


def ratio_interval(windows: Windows, reference: Windows, *, seed: int = 0) -> tuple[float, float] | None:
    """Return between which values the ratio of two perplexities on the same windows lies, with confidence 0.95.

    The bootstrap is paired: windows are drawn with replacement, the same ones for both, so that what makes a text easy
    or hard cancels. Windows beside each other are taken as independent.

    Returns:
        The percentiles 2.5 and 97.5 of 2,000 draws; None for fewer than two windows, or other ones.

    Source: Efron 1979 (bootstrap); paired for language: Koehn 2004, Statistical significance tests.
    """
    (ours, tokens), (theirs, counted) = _columns(windows), _columns(reference)
    if len(ours) < 2 or not torch.equal(tokens, counted):
        return None
    draws = torch.randint(len(ours), (_RESAMPLES, len(ours)), generator=torch.Generator().manual_seed(seed))
    ratios = ((ours - theirs)[draws].sum(1) / tokens[draws].sum(1)).exp()
    low, high = ratios.quantile(torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=ratios.dtype)).tolist()
    return low, high


def _columns(windows: Windows) -> tuple[Tensor, Tensor]:
    nll, tokens = torch.tensor([list(window) for window in windows], dtype=torch.float64).reshape(-1, 2).unbind(1)
    return nll, tokens
