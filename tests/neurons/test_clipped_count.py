"""The graded neuron: its count is the quantised sum at every step, whatever the order."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fas.neurons.clipped_count import ClippedCount

signs = pytest.mark.parametrize("signed", [True, False])
# Dyadic: float64 is exact, so sums do not depend on the order by themselves.
currents = st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=1, max_size=9)
potentials = st.integers(0, 7).map(lambda n: n / 8)


def run(neuron: ClippedCount, values: list[float], v_init: float) -> list[float]:
    """Counts by steps of the definition, threshold 1/2."""
    theta = torch.tensor(0.5, dtype=torch.float64)
    v, count, counts = v_init * theta.reshape(1), torch.zeros(1, dtype=torch.float64), []
    for value in values:
        spikes, v = neuron.step(torch.tensor([value], dtype=torch.float64), v, count, theta, len(values))
        assert spikes.item() == math.floor(spikes.item())
        count = count + spikes
        counts.append(count.item())
    return counts


@signs
@given(values=currents, v_init=potentials)
def test_the_count_is_the_quantised_sum_at_every_step(signed, values, v_init):
    neuron = ClippedCount(signed=signed)
    lower, upper = neuron.bounds(len(values))
    for t, count in enumerate(run(neuron, values, v_init), start=1):
        level = math.floor(sum(map(Fraction, values[:t])) * 2 + Fraction(v_init))
        assert count == max(lower, min(upper, level))


@signs
@given(values=currents, v_init=potentials, data=st.data())
def test_the_order_of_the_input_leaves_the_final_count(signed, values, v_init, data):
    neuron = ClippedCount(signed=signed)
    other = data.draw(st.permutations(values))
    assert run(neuron, other, v_init)[-1] == run(neuron, values, v_init)[-1]
    levels = [torch.tensor(v, dtype=torch.float64).cumsum(0).mul(2).add(v_init).floor() for v in (values, other)]
    ends = [neuron.scan(f.unsqueeze(1), torch.zeros(1, dtype=torch.float64), len(values))[-1] for f in levels]
    assert torch.equal(*ends)


@signs
def test_saturation_keeps_the_potential_and_comes_back(signed: bool):
    # Three thresholds too many at first; the count leaves its bound once the sum does.
    assert run(ClippedCount(signed=signed), [3.0, -1.0, -1.0], 0.5) == [3, 3, 2]


def test_is_exact_for_any_input():
    assert ClippedCount.exact_when == "any"
