"""The phase code: the window of spikes is the binary expansion of the count."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fas.neurons.phase import Phase
from fas.types import RateNeuron

signs = pytest.mark.parametrize("signed", [True, False])
HALF = torch.tensor(0.5, dtype=torch.float64)


def emissions(neuron: Phase, counts: torch.Tensor, steps: int) -> torch.Tensor:
    """Value [T, n] of what is sent at every step for input that stands for ``counts``."""
    drive = counts / neuron.resolution(steps)
    return torch.diff(neuron.window(drive, HALF, steps), dim=0, prepend=torch.zeros_like(drive)[None])


@signs
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 8])
def test_digits_rebuild_every_count_in_at_most_one_spike_a_step(signed: bool, steps: int):
    neuron = Phase(signed=signed)
    lower, upper = neuron.bounds(steps)
    counts = torch.arange(lower, upper + 1, dtype=torch.float64)
    sent = emissions(neuron, counts, steps)
    assert torch.equal(sent.sum(0), counts)
    for t in range(steps):
        assert set(sent[t].abs().tolist()) <= {0.0, 2.0 ** (steps - 1 - t)}
    spikes = (sent != 0).sum(0)
    assert spikes.max() == steps
    # Python's own binary digits, most significant first.
    for column, count in zip(sent.T.tolist(), counts.int().tolist(), strict=True):
        digits = [int(digit) for digit in f"{abs(count):0{steps}b}"]
        assert [int(value != 0) for value in column] == digits
        assert all(value * count >= 0 for value in column)
    assert neuron.spikes(counts, steps).tolist() == [abs(int(n)).bit_count() for n in counts]
    assert torch.equal(neuron.spikes(counts, steps), spikes.double())


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_number_of_levels(steps: int):
    drive = torch.linspace(-1.5, 1.5, 16 * 2**steps + 1, dtype=torch.float64)
    assert len(Phase(signed=True).window(drive, HALF, steps)[-1].unique()) == 2 ** (steps + 1) - 1
    assert len(Phase(signed=False).window(drive, HALF, steps)[-1].unique()) == 2**steps


@signs
@given(st.floats(-3, 3), st.integers(1, 10))
def test_each_step_halves_what_is_left(signed, drive, steps):
    """After step t less than the weight of that step is missing: an answer whose error halves."""
    sent = Phase(signed=signed).window(torch.tensor([drive], dtype=torch.float64), HALF, steps).squeeze(1)
    for t in range(steps):
        assert (sent[-1] - sent[t]).abs() < 2 ** (steps - 1 - t)


def test_fires_after_its_input_and_so_is_no_rate_neuron():
    assert not isinstance(Phase(), RateNeuron)
    assert Phase.exact_when == "any"
