"""The plain IF neuron: its closed form over time, and its identity with QCFS for even input."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fas.layers.qcfs import qcfs
from fas.neurons.soft_reset_if import SoftResetIF, _Triangle

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
def test_non_negative_currents_give_the_textbook_neuron(currents, v_init, theta):
    x = column(currents)
    levels = (x.cumsum(0) / theta + v_init).floor()
    start = torch.zeros_like(x[0])
    expected = simulate(currents, v_init, theta)
    assert NEURON.scan(levels, start, len(currents)).squeeze(1).tolist() == expected
    # The form that has a surrogate gradient sends the same.
    fired = NEURON.fire(x, torch.tensor([v_init], dtype=torch.float64), torch.tensor([theta], dtype=torch.float64))
    assert fired.cumsum(0).squeeze(1).tolist() == expected


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


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_surrogate_gradient_is_a_triangle_of_area_one(gamma):
    x = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    fired = _Triangle.apply(x, gamma)
    fired.sum().backward()
    assert torch.equal(fired, (x >= 0).double())
    expected = [max(0.0, gamma - abs(value)) / gamma**2 for value in x.tolist()]
    torch.testing.assert_close(x.grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
