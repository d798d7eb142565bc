"""Intervals of perplexities and their ratios, against loops and against what they promise."""

import math
import random
import statistics

import pytest
import torch

from fas.evaluation.interval import ratio_interval, standard_error


def drawn(seed, windows=40):
    """Two models on the same windows: a hard window is hard for both, the second is 1 % worse at each token."""
    rng = random.Random(seed)
    ours, theirs = [], []
    for _ in range(windows):
        tokens, hard = rng.randint(50, 200), rng.gauss(3.0, 0.8)
        theirs.append([hard * tokens, tokens])
        ours.append([(hard + 0.01 + rng.gauss(0, 0.02)) * tokens, tokens])
    return ours, theirs


def ratio(ours, theirs, chosen):
    return math.exp(sum(ours[i][0] - theirs[i][0] for i in chosen) / sum(ours[i][1] for i in chosen))


def test_the_interval_is_that_of_draws_one_by_one():
    ours, theirs = drawn(0)
    rng, places = random.Random(1), range(len(ours))
    found = sorted(ratio(ours, theirs, rng.choices(places, k=len(ours))) for _ in range(20_000))
    low, high = ratio_interval(ours, theirs)
    # Percentiles of 2,000 draws are themselves uncertain by a twentieth of the interval.
    slack = 0.1 * (found[19_499] - found[499])
    assert low == pytest.approx(found[499], abs=slack) and high == pytest.approx(found[19_499], abs=slack)
    assert ratio_interval(ours, theirs) == (low, high) != ratio_interval(ours, theirs, seed=1)


def test_it_is_that_of_two_thousand_draws():
    ours, theirs = drawn(0)
    draws = torch.randint(len(ours), (2000, len(ours)), generator=torch.Generator().manual_seed(0)).tolist()
    found = torch.tensor([ratio(ours, theirs, chosen) for chosen in draws], dtype=torch.float64)
    # Sums of 40 numbers in another order.
    expected = found.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert ratio_interval(ours, theirs) == pytest.approx(expected, rel=1e-12)


def test_it_holds_the_true_ratio_as_often_as_it_says():
    held = [low < math.exp(0.01) < high for low, high in (ratio_interval(*drawn(seed)) for seed in range(200))]
    assert 0.89 <= sum(held) / len(held) <= 0.99


def test_a_pairing_is_needed():
    ours, theirs = drawn(0)
    # Windows as hard as they come: without pairing nothing could be said of one percent.
    assert standard_error(theirs) / math.exp(3) > 0.05 and ratio_interval(ours, theirs)[0] > 1
    assert ratio_interval(ours[:1], theirs[:1]) is None and ratio_interval(ours, theirs[1:]) is None
    assert ratio_interval([[1, 2], [1, 3]], [[1, 2], [1, 4]]) is None and math.isnan(standard_error(ours[:1]))


def test_the_standard_error_is_the_spread_of_perplexities_of_other_texts():
    values = [math.exp(sum(n for n, _ in w) / sum(t for _, t in w)) for _, w in (drawn(s) for s in range(400))]
    stated = statistics.mean(standard_error(drawn(s)[1]) for s in range(400))
    assert stated == pytest.approx(statistics.stdev(values), rel=0.15)


def test_of_windows_of_one_length_it_is_that_of_their_means():
    _, theirs = drawn(2, windows=3)
    windows = [[50.0 * nll / tokens, 50] for nll, tokens in theirs]
    means = [nll / 50 for nll, _ in windows]
    expected = math.exp(statistics.mean(means)) * statistics.stdev(means) / math.sqrt(3)
    assert standard_error(windows) == pytest.approx(expected, rel=1e-6)
