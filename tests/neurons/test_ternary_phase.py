"""The balanced-ternary code against a construction of the numerals by hand."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fas.neurons.ternary_phase import TernaryPhase
from fas.types import RateNeuron

signs = pytest.mark.parametrize("signed", [True, False])
HALF = torch.tensor(0.5, dtype=torch.float64)


def emissions(neuron: TernaryPhase, counts: torch.Tensor, steps: int) -> torch.Tensor:
    """Value [T, n] of what is sent at every step for input that stands for ``counts``."""
    drive = counts / neuron.resolution(steps)
    return torch.diff(neuron.window(drive, HALF, steps), dim=0, prepend=torch.zeros_like(drive)[None])


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6])
def test_every_string_of_signs_is_another_count_and_every_count_has_one(steps: int):
    """The numerals, written out: all 3^T strings, valued digit by digit in Python's whole numbers."""
    strings = list(itertools.product((-1, 0, 1), repeat=steps))
    values = [sum(digit * 3 ** (steps - 1 - t) for t, digit in enumerate(string)) for string in strings]
    neuron = TernaryPhase(signed=True)
    lower, upper = neuron.bounds(steps)
    assert sorted(values) == list(range(lower, upper + 1))
    counts = torch.tensor(values, dtype=torch.float64)
    sent = emissions(neuron, counts, steps)
    weights = torch.tensor([3 ** (steps - 1 - t) for t in range(steps)], dtype=torch.float64)
    assert (sent / weights.unsqueeze(1)).T.tolist() == [list(map(float, string)) for string in strings]
    assert neuron.spikes(counts, steps).tolist() == [sum(map(abs, string)) for string in strings]


@signs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 15))
def test_digits_rebuild_the_count(signed: bool, dtype: torch.dtype, seed: int, steps: int):
    """Up to the longest window, in float32 too: digits are −1, 0 or 1 and add up exactly."""
    neuron = TernaryPhase(signed=signed)
    lower, upper = neuron.bounds(steps)
    counts = torch.randint(lower, upper + 1, (32,), generator=torch.Generator().manual_seed(seed)).to(dtype)
    counts[:2] = torch.tensor([lower, upper], dtype=dtype)
    left = counts.long()
    for t, step in enumerate(neuron.window(counts / upper, HALF.to(dtype), steps)):
        weight = 3 ** (steps - 1 - t)
        # Nearest number that the digits so far can say.
        assert (2 * (left - step.long()).abs() < weight).all()
    assert torch.equal(step, (counts / upper * upper + 0.5).floor().clamp(lower, upper))
    assert neuron.spikes(counts, steps).max() <= steps


@signs
def test_number_of_levels(signed: bool):
    drive = torch.linspace(-1.5, 1.5, 6001, dtype=torch.float64)
    levels = len(TernaryPhase(signed=signed).window(drive, HALF, 4)[-1].unique())
    assert levels == (81 if signed else 41)


def test_counts_beyond_float32_are_refused():
    with pytest.raises(ValueError, match="at most 15 steps"):
        TernaryPhase().resolution(16)


def test_fires_after_its_input_and_so_is_no_rate_neuron():
    assert not isinstance(TernaryPhase(), RateNeuron)
    assert TernaryPhase.exact_when == "any"
