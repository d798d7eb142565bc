"""Scores of predictions against labels; NaN where a score is undefined, never a silent zero."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of equal entries of two integer arrays [N], in [0, 1]; NaN for N = 0."""
    predicted, true = _aligned(predictions, labels)
    return float(np.mean(predicted == true)) if len(true) else math.nan


def f1(predictions: ArrayLike, labels: ArrayLike, positive: int = 1) -> float:
    """Return 2 TP / (2 TP + FP + FN) of class ``positive`` for integer arrays [N], in [0, 1].

    NaN where the class is neither predicted nor true anywhere (scikit-learn gives 0 and warns).
    """
    predicted, true = _aligned(predictions, labels)
    hits = np.sum((predicted == positive) & (true == positive))
    total = np.sum(predicted == positive) + np.sum(true == positive)
    return float(2 * hits / total) if total else math.nan


def f1_macro(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the unweighted mean of ``f1`` over the classes predicted or true; NaN for N = 0."""
    predicted, true = _aligned(predictions, labels)
    classes = np.union1d(predicted, true)
    return float(np.mean([f1(predicted, true, int(c)) for c in classes])) if len(classes) else math.nan


def matthews(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return Matthews' correlation of two integer arrays [N] for any number of classes, in [-1, 1].

    The multi-class form R_K of Gorodkin 2004 (Comput. Biol. Chem. 28): the covariance of the two
    one-hot matrices over the root of the product of their variances. NaN for a single class (scikit-learn: 0).
    """
    predicted, true = _aligned(predictions, labels)
    classes = np.union1d(predicted, true)
    if not len(classes):
        return math.nan
    one_hot_predicted = (predicted[:, None] == classes).astype(np.float64)
    one_hot_true = (true[:, None] == classes).astype(np.float64)
    return _correlation(one_hot_predicted, one_hot_true)


def pearson(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the linear correlation of two real arrays [N], in [-1, 1].

    NaN where either array is constant, not finite or has fewer than two entries.
    """
    predicted, true = _aligned(predictions, labels)
    return _correlation(predicted.astype(np.float64)[:, None], true.astype(np.float64)[:, None])


def spearman(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the correlation of the ranks of two real arrays [N] (ties share their mean rank).

    NaN where either array is constant, holds a NaN or has fewer than two entries.
    """
    predicted, true = _aligned(predictions, labels)
    if np.isnan(predicted).any() or np.isnan(true).any():
        return math.nan
    return pearson(_ranks(predicted), _ranks(true))


def _aligned(predictions: ArrayLike, labels: ArrayLike) -> tuple[NDArray, NDArray]:
    predicted, true = np.asarray(predictions), np.asarray(labels)
    if predicted.ndim != 1 or predicted.shape != true.shape:
        raise ValueError(
            f"predictions {list(predicted.shape)} and labels {list(true.shape)}: expected the same shape [N]"
        )
    return predicted, true


def _correlation(x: NDArray, y: NDArray) -> float:
    """Return sum(dx dy) / sqrt(sum(dx^2) sum(dy^2)) for [N, K] with column means removed."""
    # Rounding leaves a constant column a tiny variance: constancy is judged before centring.
    if len(x) < 2 or (x == x[0]).all() or (y == y[0]).all():
        return math.nan
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.nan
    return float(np.clip(np.sum(_direction(x) * _direction(y)), -1.0, 1.0))


def _direction(x: NDArray) -> NDArray:
    centred = x - x.mean(axis=0)
    # Scaled first: the squares of tiny values underflow.
    centred = centred / np.abs(centred).max()
    return centred / np.linalg.norm(centred)


def _ranks(values: NDArray) -> NDArray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
