"""Two ranges: the gate, the digits and the levels, against a plain statement of the paper's neuron."""

import math
import pickle
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fas.neurons.outlier_aware import OutlierAware

timesteps = st.integers(1, 9)
bits = st.integers(1, 5)
# Dyadic numbers: every product here is exact, so ties are real ties.
drives = st.integers(-80, 80).map(lambda n: Fraction(n, 64))


def digits_sent(value: Fraction, unit: int, steps: int) -> list[int]:
    """Multi-threshold coder: thresholds 2^{T−1}…1 times a unit, each fires once and takes its weight."""
    sent = []
    for t in range(steps):
        weight = unit * 2 ** (steps - 1 - t)
        fires = value >= weight
        value -= weight if fires else 0
        sent.append(weight if fires else 0)
    return sent


def by_the_paper(level: int, steps: int, b: int, signed: bool) -> list[int]:
    """Counts over time of an input that lies at a fine level: the mask, then one coder or the other."""
    sign = (level > 0) - (level < 0)
    if sign < 0 and not signed:
        return [0] * steps
    outlier = abs(level) > 2**steps - 1
    unit = 2**b if outlier else 1
    # The outlier coder rounds to the nearest of its levels, and ends at its last.
    value = Fraction(abs(level)) + (Fraction(unit, 2) if outlier else 0)
    total, counts = 0, []
    for weight in digits_sent(value, unit, steps):
        total += weight
        counts.append(sign * total)
    return counts


@pytest.mark.parametrize("signed", [True, False])
@given(drive=drives, v_init=st.integers(0, 7).map(lambda n: Fraction(n, 8)), steps=timesteps, b=bits)
def test_a_window_is_the_coder_in_charge(signed, drive, v_init, steps, b):
    neuron = OutlierAware(signed=signed, outlier_bits=b)
    most = neuron.resolution(steps)
    assert most == 2**b * (2**steps - 1) and neuron.bounds(steps) == (-most if signed else 0, most)
    level = math.floor(drive * most + v_init)
    x, v = (torch.tensor([float(value)], dtype=torch.float64) for value in (drive, v_init))
    counts = neuron.window(x, v, steps)
    expected = by_the_paper(level, steps, b, signed)
    assert counts.flatten().tolist() == expected
    settled = neuron.settle(torch.tensor([float(level)]), steps)
    assert settled.tolist() == expected[-1:]
    emitted = torch.diff(counts, dim=0, prepend=torch.zeros(1, 1, dtype=torch.float64))
    assert neuron.spikes(counts[-1], steps).item() == int((emitted != 0).sum()) <= steps


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_levels_are_those_stated(steps):
    neuron = OutlierAware(outlier_bits=2)
    every = torch.arange(-neuron.resolution(steps) - 9, neuron.resolution(steps) + 10, dtype=torch.float64)
    reached = neuron.settle(every, steps).unique().tolist()
    normal = list(range(2**steps))
    coarse = [4 * n for n in range(2**steps) if 4 * n >= 2**steps]
    positive = normal + coarse
    # 2^T up to θ_nor, 2^T − 2^{T−b} beyond; a range shorter than b bits has no level of the coarse one inside.
    assert len(coarse) == 2**steps - max(1, 2**steps // 4)
    assert reached == [-n for n in reversed(positive[1:])] + positive
    assert neuron.levels(steps) == len(reached)
    assert OutlierAware(signed=False, outlier_bits=2).levels(steps) == len(positive)


def test_it_resolves_small_values_better_than_one_range_and_outliers_as_well():
    from fas.neurons.phase import Phase

    x, half = torch.linspace(-1, 1, 4001, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    error = {}
    for neuron in (OutlierAware(outlier_bits=4), Phase()):
        error[type(neuron)] = (neuron.window(x, half, 6)[-1] / neuron.resolution(6) - x).abs()
    small = x.abs() < 1 / 16
    assert float(error[OutlierAware][small].max()) <= 0.5 / (16 * 63) + 1e-12  # half a level; float64 rounding
    assert float(error[Phase][small].max()) > 7.9 * 0.5 / (8 * 63)
    assert float(error[OutlierAware].max()) <= float(error[Phase].max()) + 0.5 / (16 * 63)


def test_long_windows_count_exactly_in_float32():
    neuron = OutlierAware()
    levels = torch.tensor([1.0, 65535.0, 65536.0, 65544.0, 1048559.0, 1048560.0, 2e6])
    # At 65,544 two coarse levels are equally near: the upper one.
    assert neuron.settle(levels, 16).tolist() == [1, 65535, 65536, 65552, 1048560, 1048560, 1048560]


def test_half_precision_and_an_empty_batch():
    neuron = OutlierAware(outlier_bits=1)
    drive = torch.arange(-8, 9) / 4
    for dtype in (torch.bfloat16, torch.float16):
        counts = neuron.window(drive.to(dtype), torch.tensor(0.5, dtype=dtype), 3)
        assert counts.dtype == dtype
        assert torch.equal(counts.double(), neuron.window(drive.double(), torch.tensor(0.5).double(), 3))
    assert neuron.window(torch.zeros(0, 7), torch.tensor(0.5), 3).shape == (3, 0, 7)


def test_it_is_a_value():
    assert OutlierAware(outlier_bits=3) == pickle.loads(pickle.dumps(OutlierAware(outlier_bits=3)))
    with pytest.raises(ValueError, match="outlier_bits is 0; expected a whole number from 1 to 16"):
        OutlierAware(outlier_bits=0)
