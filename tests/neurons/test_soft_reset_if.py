"""The plain IF neuron: its closed form over time, and its identity with QCFS for even input."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fas.layers.qcfs import qcfs
from fas.neurons.soft_reset_if import SoftResetIF

NEURON = SoftResetIF()

# Dyadic numbers keep float64 exact, so that v == θ happens and is decided alike everywhere.
eighths = st.integers(0, 24).map(lambda n: n / 8)


def simulate(currents: list[float], v_init: float, theta: float) -> list[int]:
    """The textbook neuron in rational numbers; returns the counts."""
    v, count, counts = Fraction(v_init) * Fraction(theta), 0, []
    for current in currents:
        v += Fraction(current)
        if v >= Fraction(theta):
            v -= Fraction(theta)
            count += 1
        counts.append(count)
    return counts


def column(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


@given(
    st.lists(eighths, min_size=1, max_size=9),
    st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    st.sampled_from([0.25, 0.5, 1.0, 2.0]),
)
def test_closed_form_for_non_negative_currents_is_the_textbook_neuron(currents, v_init, theta):
    x = column(currents)
    levels = (x.cumsum(0) / theta + v_init).floor()
    start = torch.zeros_like(x[0])
    counts = NEURON.scan_nonnegative(levels, start, len(currents))
    assert counts.squeeze(1).tolist() == simulate(currents, v_init, theta)
    assert torch.equal(counts, NEURON.scan(levels, start, len(currents)))


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.data())
def test_closed_form_continues_a_stretch(seed, steps, data):
    cut = data.draw(st.integers(1, steps - 1))
    rng = torch.Generator().manual_seed(seed)
    # Whole levels suffice: both forms see F only. Up to three levels a step, so that F outruns the count.
    levels = torch.randint(0, 4, (steps, 5, 7), generator=rng).double().cumsum(0)
    start = torch.zeros_like(levels[0])
    whole = NEURON.scan(levels, start, steps)
    first = NEURON.scan_nonnegative(levels[:cut], start, steps)
    assert torch.equal(torch.cat([first, NEURON.scan_nonnegative(levels[cut:], first[-1], steps)]), whole)


def test_closed_form_does_not_hold_for_negative_currents():
    levels = column([1.0, 0.0])
    start = torch.zeros(1, dtype=torch.float64)
    assert NEURON.scan(levels, start, 2).squeeze(1).tolist() == [1, 1]
    assert NEURON.scan_nonnegative(levels, start, 2).squeeze(1).tolist() == [1, 0]


@given(st.integers(-40, 80).map(lambda n: n / 16), st.integers(1, 9), st.sampled_from([0.25, 0.5, 1.0, 2.0]))
def test_even_input_is_qcfs_with_as_many_levels_ties_included(x, steps, theta):
    count = simulate([x] * steps, 0.5, theta)[-1]
    quantised = qcfs(torch.tensor([x], dtype=torch.float64), torch.tensor(theta, dtype=torch.float64), steps)
    # The same product of a whole number with θ/L on both sides: equal to the last bit.
    assert quantised.item() == count * (theta / steps)
    window = NEURON.window(torch.tensor([x / theta], dtype=torch.float64), torch.tensor(0.5), steps)
    assert window[-1].item() == count


def test_fires_at_equality():
    spikes, v = NEURON.step(torch.tensor([0.5, 0.4375]), torch.tensor([0.5, 0.5]), torch.zeros(2), torch.tensor(1.0), 1)
    assert spikes.tolist() == [1, 0]
    assert v.tolist() == [0, 0.9375]


def test_an_early_spike_is_never_taken_back():
    levels = column([1.0, -3.0, -8.0])
    assert NEURON.scan(levels, torch.zeros(1, dtype=torch.float64), 3).squeeze(1).tolist() == [1, 1, 1]


def test_carries_no_sign():
    assert not NEURON.signed
    assert NEURON.bounds(8) == (0, 8)
    with pytest.raises(TypeError, match="unexpected keyword argument 'signed'"):
        SoftResetIF(signed=True)
