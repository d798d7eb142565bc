"""The signed IF neuron: takes back what came too early, within its bounds."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fas.layers.qcfs import qcfs
from fas.neurons.signed_if import SignedIF

signs = pytest.mark.parametrize("signed", [True, False])
# Dyadic: float64 is exact, ties included.
eighths = st.integers(-24, 24).map(lambda n: n / 8)


def simulate(currents: list[float], v_init: float, theta: float, lower: int, upper: int) -> list[int]:
    """The definition in rational numbers; returns the counts."""
    v, count, counts = Fraction(v_init) * Fraction(theta), 0, []
    for current in currents:
        v += Fraction(current)
        spike = 0
        if v >= Fraction(theta) and count < upper:
            spike = 1
        elif v < 0 and count > lower:
            spike = -1
        v -= spike * Fraction(theta)
        count += spike
        counts.append(count)
    return counts


def scan(neuron: SignedIF, currents: list[float], v_init: float, theta: float) -> list[int]:
    x = torch.tensor(currents, dtype=torch.float64).unsqueeze(1)
    levels = (x.cumsum(0) / theta + v_init).floor()
    return neuron.scan(levels, torch.zeros_like(x[0]), len(currents)).squeeze(1).tolist()


@signs
@given(
    currents=st.lists(eighths, min_size=1, max_size=9),
    v_init=st.integers(0, 7).map(lambda n: n / 8),
    theta=st.sampled_from([0.25, 0.5, 1.0, 2.0]),
)
def test_scan_is_the_definition(signed, currents, v_init, theta):
    neuron = SignedIF(signed=signed)
    expected = simulate(currents, v_init, theta, *neuron.bounds(len(currents)))
    assert scan(neuron, currents, v_init, theta) == expected


@signs
@given(
    x=st.integers(-80, 80).map(lambda n: n / 16),
    steps=st.integers(1, 9),
    theta=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_even_input_is_qcfs_with_as_many_levels(signed, x, steps, theta):
    neuron = SignedIF(signed=signed)
    count = simulate([x] * steps, 0.5, theta, *neuron.bounds(steps))[-1]
    value = qcfs(
        torch.tensor([x], dtype=torch.float64),
        torch.tensor(theta, dtype=torch.float64),
        steps,
        bounds=neuron.bounds(steps),
    )
    assert value.item() == count * (theta / steps)


@signs
def test_takes_an_early_spike_back(signed: bool):
    assert scan(SignedIF(signed=signed), [1.0, -1.0, 0.0], 0.5, 1.0) == [1, 0, 0]


def test_without_sign_the_count_stays_at_zero():
    assert scan(SignedIF(signed=False), [-1.0, -1.0, -1.0], 0.5, 1.0) == [0, 0, 0]
    assert scan(SignedIF(signed=True), [-1.0, -1.0, -1.0], 0.5, 1.0) == [-1, -2, -3]


@signs
def test_saturated_neurons_are_silent(signed: bool):
    neuron = SignedIF(signed=signed)
    count = torch.tensor([float(bound) for bound in neuron.bounds(3)])
    current = torch.tensor([-5.0, 5.0])
    spikes, v = neuron.step(current, torch.zeros(2), count, torch.tensor(1.0), 3)
    assert spikes.tolist() == [0, 0]
    assert torch.equal(v, current)


@signs
@given(st.data(), st.integers(1, 5))
def test_the_count_settles_once_the_input_has_paused_long_enough(signed, data, busy):
    """One correction a step: after ``busy`` steps the count is at most |F| + busy away from F."""
    neuron = SignedIF(signed=signed)
    currents = data.draw(st.lists(eighths, min_size=busy, max_size=busy))
    quiet = 4 * busy + 1  # |F| ≤ 3 · busy + 1/2, and the count is within ±busy.
    steps = busy + quiet
    total = sum(map(Fraction, currents)) + Fraction(1, 2)
    lower, upper = neuron.bounds(steps)
    ended = scan(neuron, currents + [0.0] * quiet, 0.5, 1.0)[-1]
    assert ended == max(lower, min(upper, total.__floor__()))
