"""The signed-digit code against all words that there are, and against a plain loop over the rule."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fas.neurons.signed_digit import SignedDigit
from fas.neurons.ternary_phase import TernaryPhase
from fas.types import RateNeuron

HALF = torch.tensor(0.5, dtype=torch.float64)
prices = st.one_of(st.just(0.0), st.integers(0, 300).map(float), st.floats(0, 100))
limits = st.integers(0, 5)


def all_counts(neuron: SignedDigit, steps: int) -> torch.Tensor:
    lower, upper = neuron.bounds(steps)
    return torch.arange(lower, upper + 1, dtype=torch.float64)


def emissions(neuron: SignedDigit, counts: torch.Tensor, steps: int) -> torch.Tensor:
    """Value [T, n] of what is sent at every step for input that stands for ``counts``."""
    window = neuron.window(counts / neuron.resolution(steps), HALF, steps)
    return torch.diff(window, dim=0, prepend=torch.zeros_like(counts)[None])


def by_hand(count: int, digits: int, wide: int, limit: int, price: Fraction) -> list[int]:
    """Digits of a count, most significant first: Python's whole numbers and fractions alone."""
    sent, left, spent = [], count, 0
    for step in range(wide + digits):
        weight = 3 ** max(0, wide - step) * 2 ** (digits - 1 - max(0, step - wide))
        saved = left * left - (abs(left) - weight) ** 2
        near = 2 * abs(left) > weight if step < wide else 4 * abs(left) >= 3 * weight
        fires = near and (not limit or spent < limit)
        spent += fires and saved >= price
        fires = fires and saved >= price
        sent.append((1 if left > 0 else -1) if fires else 0)
        left -= sent[-1] * weight
    return sent


def words(neuron: SignedDigit, steps: int) -> dict[int, int]:
    """Return every number that a word of digits stands for, with the fewest spikes that do."""
    found: dict[int, int] = {}
    for word in itertools.product((-1, 0, 1), repeat=steps):
        spikes = sum(map(abs, word))
        if not neuron.max_spikes or spikes <= neuron.max_spikes:
            value = sum(digit * 2 ** (steps - 1 - t) for t, digit in enumerate(word))
            found[value] = min(found.get(value, steps), spikes)
    return found


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("limit", [0, 1, 2, 3])
def test_every_count_is_the_nearest_that_a_word_stands_for_at_the_fewest_spikes(steps: int, limit: int):
    neuron = SignedDigit(max_spikes=limit, wide=0)
    known, counts = words(neuron, steps), all_counts(neuron, steps)
    settled = neuron.settle(counts, steps)
    assert max(known) == neuron.resolution(steps)
    for count, found, spikes in zip(counts, settled, neuron.spikes(settled, steps), strict=True):
        assert abs(count - found) == min(abs(count - value) for value in known)
        assert spikes == known[int(found)]
    # Exactly the numbers that words stand for are levels.
    assert set(settled.tolist()) == set(known)
    assert neuron.levels(steps) == len(known)
    assert not neuron.even_levels or len(known) == len(counts)


@pytest.mark.parametrize("price", [0.5, 1, 1.5, 3, 4, 10, 37.5, 64, 200])
@pytest.mark.parametrize("limit", [0, 1, 2, 3])
@pytest.mark.parametrize("steps", [2, 4, 7])
def test_the_rule_finds_the_cheapest_word(steps: int, limit: int, price: float):
    neuron = SignedDigit(max_spikes=limit, price=price, wide=0)
    known, counts = words(neuron, steps), all_counts(neuron, steps)
    values, spikes = torch.tensor(list(known)).double(), torch.tensor(list(known.values()))
    cheapest = ((counts[:, None] - values) ** 2 + price * spikes).amin(1)
    settled = neuron.settle(counts, steps)
    # Numbers below 2^15 times a price of few digits: exact.
    assert torch.equal((counts - settled) ** 2 + price * neuron.spikes(settled, steps), cheapest)


@given(data=st.data(), digits=st.integers(1, 12), wide=st.integers(0, 3), limit=limits, price=prices)
def test_what_is_sent_follows_the_rule_written_out(data, digits, wide, limit, price):
    steps, neuron = digits + wide, SignedDigit(max_spikes=limit, price=price, wide=wide)
    lower, upper = neuron.bounds(steps)
    counts = data.draw(st.lists(st.integers(lower, upper), min_size=1, max_size=20))
    sent = emissions(neuron, torch.tensor(counts, dtype=torch.float64), steps)
    digit = sent / torch.tensor(neuron.weights(steps), dtype=torch.float64).unsqueeze(1)
    for column, count in zip(digit.T.tolist(), counts, strict=True):
        expected = by_hand(count, digits, wide, limit, Fraction(price))
        if column != expected:
            # (w + λ/w)/2 is rounded to 53 bits; only a tie can tell.
            near = [abs(float(2 * w * abs(count) - w * w) - price) < 1e-9 for w in neuron.weights(steps)]
            assert any(near) and not price.is_integer()
    settled = neuron.settle(torch.tensor(counts, dtype=torch.float64), steps)
    assert torch.equal(settled, sent.sum(0))
    # With a limit or price a wide step may have been left out that the settled number fires at.
    if not wide or neuron.even_levels:
        assert torch.equal(neuron.spikes(settled, steps), (sent != 0).sum(0).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 20), limit=limits)
def test_a_limit_leaves_a_relative_error(dtype: torch.dtype, seed: int, steps: int, limit: int):
    """After k spikes at most a third of the last one is left, which is at most half of the one before: 3^−1 · 2^{1−k}.

    Beyond the middle between the two largest powers of two the range ends, and with it the claim.
    """
    neuron = SignedDigit(max_spikes=limit, wide=0)
    most = min(neuron.resolution(steps), 3 * 2 ** (steps - 2) - 1) if steps > 1 else 1
    counts = torch.randint(-most, most + 1, (64,), generator=torch.Generator().manual_seed(seed)).to(dtype)
    left = (counts - neuron.settle(counts, steps)).abs()
    if limit:
        assert (left <= counts.abs() / 3 * 2.0 ** (1 - limit)).all()
        assert neuron.spikes(neuron.settle(counts, steps), steps).max() <= limit
    else:
        assert not left.any()


def test_canonical_digits_are_no_fewer():
    """Spikes of every count against the canonical form, by Reitwiesner's recoding; a third of the steps on average."""
    steps, neuron = 12, SignedDigit(wide=0)
    counts = torch.arange(0, 2 ** (steps + 1) // 3 + 1, dtype=torch.float64)
    spikes = neuron.spikes(counts, steps)
    for count, found in zip(counts.long().tolist(), spikes.tolist(), strict=True):
        assert found == bin((3 * count) ^ count).count("1")
    assert spikes.mean() < 0.4 * steps


@pytest.mark.parametrize("wide", [1, 2, 3, 9])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_wide_steps_reach_further_and_leave_no_count_out(wide: int, steps: int):
    neuron = SignedDigit(wide=wide)
    counts = all_counts(neuron, steps)
    assert torch.equal(neuron.settle(counts, steps), counts)
    assert torch.equal(emissions(neuron, counts, steps).sum(0), counts)
    assert neuron.levels(steps) == len(counts)


def test_weights_fall_by_three_and_then_by_two():
    assert SignedDigit().weights(8) == (648, 216, 72, 24, 8, 4, 2, 1)
    assert SignedDigit().bounds(8) == (-975, 975) and SignedDigit(wide=0).bounds(8) == (-255, 255)
    # One step is left that no other follows: balanced ternary.
    assert SignedDigit().weights(4) == SignedDigit(wide=9).weights(4) == (27, 9, 3, 1)
    every = torch.arange(-40.0, 41)
    assert torch.equal(SignedDigit().spikes(every, 4), TernaryPhase().spikes(every, 4))


@pytest.mark.parametrize(
    "neuron", [SignedDigit(max_spikes=2), SignedDigit(price=9.0), SignedDigit(signed=False, max_spikes=1)]
)
def test_settling_is_clipped_and_final_and_keeps_what_is_no_number(neuron: SignedDigit):
    lower, upper = neuron.bounds(8)
    values = torch.tensor([-1e30, -math.inf, 1e30, math.inf, math.nan])
    settled = neuron.settle(values, 8)
    assert settled[:4].tolist() == [neuron.settle(torch.tensor(float(end)), 8) for end in (lower, lower, upper, upper)]
    assert settled[4].isnan()
    counts = all_counts(neuron, 8)
    once = neuron.settle(counts, 8)
    assert torch.equal(neuron.settle(once, 8), once)
    assert (once.diff() >= 0).all() and once.min() >= lower


def test_counts_that_no_table_holds_settle_by_the_rule_itself():
    neuron = SignedDigit(max_spikes=3, wide=0)
    counts = torch.tensor([0.0, 1.0, -5.0, 1e5, 123457.0])
    assert torch.equal(neuron.settle(counts, 20), neuron.window(counts / neuron.resolution(20), HALF, 20)[-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_spikes": -1}, "max_spikes is -1; expected a whole number"),
        ({"wide": 1.5}, "wide is 1.5; expected a whole number"),
        ({"price": -0.1}, "price is -0.1; expected squared levels"),
        ({"price": math.nan}, "price is nan; expected squared levels"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SignedDigit(**options)


def test_counts_beyond_float32_are_refused():
    with pytest.raises(ValueError, match=r"float32 holds whole numbers up to 2\^24"):
        SignedDigit(wide=0).resolution(25)
    assert SignedDigit().resolution(22) == 15_990_783 < 2**24
    with pytest.raises(ValueError, match="counts of signed_digit reach 31981567"):
        SignedDigit().resolution(23)


def test_fires_after_its_input_and_so_is_no_rate_neuron():
    assert not isinstance(SignedDigit(), RateNeuron)
    assert SignedDigit.exact_when == "any" and SignedDigit.emission == "digits"
