"""Scores against scikit-learn and scipy, and where they are undefined."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from fas.evaluation import metrics

# The same sums in another order; both sides are float64.
CLOSE = {"rel": 1e-9, "abs": 1e-9}
FUNCTIONS = (
    metrics.accuracy,
    metrics.f1,
    metrics.f1_macro,
    metrics.matthews,
    metrics.pearson,
    metrics.spearman,
)


def pairs(values, minimum=1):
    return st.lists(st.tuples(values, values), min_size=minimum, max_size=40).map(
        lambda rows: tuple(np.array(column) for column in zip(*rows, strict=True))
    )


@given(pairs(st.integers(0, 3)))
def test_classes_agree_with_scikit_learn(arrays):
    predicted, true = arrays
    assert metrics.accuracy(predicted, true) == pytest.approx(sklearn.metrics.accuracy_score(true, predicted), **CLOSE)
    expected = sklearn.metrics.f1_score(true, predicted, average="macro", zero_division=0)
    assert metrics.f1_macro(predicted, true) == pytest.approx(expected, **CLOSE)
    if len(set(predicted)) > 1 and len(set(true)) > 1:
        expected = sklearn.metrics.matthews_corrcoef(true, predicted)
        assert metrics.matthews(predicted, true) == pytest.approx(expected, **CLOSE)
    else:
        assert math.isnan(metrics.matthews(predicted, true))


@given(pairs(st.integers(0, 1)))
def test_binary_f1_agrees_with_scikit_learn(arrays):
    predicted, true = arrays
    if predicted.any() or true.any():
        expected = sklearn.metrics.f1_score(true, predicted)
        assert metrics.f1(predicted, true) == pytest.approx(expected, **CLOSE)
    else:
        assert math.isnan(metrics.f1(predicted, true))


# A grid gives ties, which ranks must share, and keeps rounding away from the comparison.
@given(pairs(st.integers(-20, 20).map(lambda n: n / 8), minimum=3))
def test_correlations_agree_with_scipy(arrays):
    predicted, true = arrays
    if len(set(predicted)) == 1 or len(set(true)) == 1:
        assert math.isnan(metrics.pearson(predicted, true))
        assert math.isnan(metrics.spearman(predicted, true))
        return
    assert metrics.pearson(predicted, true) == pytest.approx(scipy.stats.pearsonr(predicted, true).statistic, **CLOSE)
    assert metrics.spearman(predicted, true) == pytest.approx(scipy.stats.spearmanr(predicted, true).statistic, **CLOSE)


@pytest.mark.parametrize("score", FUNCTIONS)
def test_no_rows_is_undefined(score):
    assert math.isnan(score([], []))


@pytest.mark.parametrize("score", FUNCTIONS)
def test_shapes_must_agree(score):
    with pytest.raises(ValueError, match=r"predictions \[2\] and labels \[1\].*same shape"):
        score([0, 1], [0])


@pytest.mark.parametrize("score", [metrics.pearson, metrics.spearman])
def test_correlation_of_a_nan_is_undefined(score):
    assert math.isnan(score([0.1, math.nan, 0.3], [1.0, 2.0, 3.0]))


def test_pearson_of_an_infinity_is_undefined_while_spearman_ranks_it():
    assert math.isnan(metrics.pearson([0.0, 1.0, math.inf], [1.0, 2.0, 3.0]))
    assert metrics.spearman([0.0, 1.0, math.inf], [1.0, 2.0, 3.0]) == pytest.approx(1.0, **CLOSE)


def test_constant_that_is_no_binary_fraction_is_undefined():
    # The mean of 0.1s rounds, which would leave a variance above zero.
    assert math.isnan(metrics.pearson([0.1] * 7, list(range(7))))


def test_tiny_values_do_not_underflow():
    assert metrics.pearson([1e-200, 2e-200, 3e-200], [1.0, 2.0, 3.0]) == pytest.approx(1.0, **CLOSE)
