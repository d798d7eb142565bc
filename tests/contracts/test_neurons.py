"""What every neuron model must keep: bounds, the closed form for even input, scan against definition."""

import dataclasses
import math
import pickle
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import generator
from neuron_variants import every, rate

from fas.types import Neuron, RateNeuron

# Nearer to a multiple of θ than this, float64 (relative rounding 1e-16, at most 20 terms of size 10)
# may put F on either side; random currents hardly ever come so near, and never by design.
MARGIN = 1e-9


# Each example holds many neurons, so a quarter of the examples is still thousands of cases.
few = settings(max_examples=settings.default.max_examples // 4)
timesteps = st.integers(1, 9)
seeds = st.integers(0, 2**32 - 1)
# Dyadic numbers: every sum, product and quotient by a power of two is exact, so ties are real ties.
eighths = st.integers(-24, 24).map(lambda n: n / 8)
potentials = st.integers(0, 15).map(lambda n: n / 16)
thresholds = st.sampled_from([0.25, 0.5, 1.0, 2.0])


def uniform(low: float, high: float, *shape: int, rng: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(*shape, generator=rng, dtype=torch.float64)


def clip(value: int, bounds: tuple[int, int]) -> int:
    return max(bounds[0], min(bounds[1], value))


def loop(
    neuron: RateNeuron, currents: torch.Tensor, v_init: torch.Tensor, theta: torch.Tensor, total: int
) -> torch.Tensor:
    """Counts by the definition, one step after the other, with a membrane potential."""
    potential, count, counts = v_init * theta, torch.zeros_like(currents[0]), []
    for current in currents:
        spikes, potential = neuron.step(current, potential, count, theta, total)
        count = count + spikes
        counts.append(count)
    return torch.stack(counts)


@every
def test_is_a_frozen_hashable_value_without_tensors(neuron: Neuron):
    assert dataclasses.is_dataclass(neuron)
    assert hash(neuron) == hash(dataclasses.replace(neuron))
    assert neuron == dataclasses.replace(neuron) == pickle.loads(pickle.dumps(neuron))
    assert not any(isinstance(value, torch.Tensor) for value in vars(neuron).values())
    assert neuron.exact_when in ("even", "any")
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'signed'"):
        neuron.signed = True


@every
@pytest.mark.parametrize("steps", [1, 2, 7, 8])
def test_bounds_are_the_resolution_on_either_side(neuron: Neuron, steps: int):
    most = neuron.resolution(steps)
    assert most >= steps
    assert neuron.bounds(steps) == ((-most, most) if neuron.signed else (0, most))


@every
@given(drive=eighths, v_init=potentials, steps=timesteps)
def test_even_input_ends_at_the_quantised_value_ties_included(neuron, drive, v_init, steps):
    bounds = neuron.bounds(steps)
    counts = neuron.window(torch.tensor([drive], dtype=torch.float64), torch.tensor(v_init, dtype=torch.float64), steps)
    expected = clip(math.floor(neuron.resolution(steps) * Fraction(drive) + Fraction(v_init)), bounds)
    assert counts.shape == (steps, 1)
    assert counts[-1].item() == expected
    assert bounds[0] <= counts.min() and counts.max() <= bounds[1]


@every
@few
@given(seed=seeds, steps=timesteps, channels=st.sampled_from([1, 7, 64]))
def test_even_input_ends_at_the_quantised_value_for_real_numbers(neuron, seed, steps, channels):
    rng = generator(seed)
    most, bounds = neuron.resolution(steps), neuron.bounds(steps)
    drive, v_init = uniform(-1.5, 1.5, 2, channels, rng=rng), uniform(0, 1, channels, rng=rng)
    counts = neuron.window(drive, v_init, steps)
    assert counts.shape == (steps, 2, channels)
    for row, ended in zip(drive.tolist(), counts[-1].tolist(), strict=True):
        for x, v, count in zip(row, v_init.tolist(), ended, strict=True):
            level = most * Fraction(x) + Fraction(v)
            if abs(level - round(level)) > MARGIN:
                assert count == clip(math.floor(level), bounds)


@every
@few
@given(seed=seeds, steps=timesteps)
def test_spikes_are_what_a_window_emits(neuron, seed, steps):
    rng = generator(seed)
    drive, v_init = uniform(-1.5, 1.5, 7, rng=rng), uniform(0, 1, 7, rng=rng)
    counts = neuron.window(drive, v_init, steps)
    emitted = torch.diff(counts, dim=0, prepend=torch.zeros(1, 7, dtype=torch.float64))
    size = emitted.abs() if isinstance(neuron, RateNeuron) else (emitted != 0).double()
    assert torch.equal(neuron.spikes(counts[-1], steps), size.sum(0))
    if isinstance(neuron, RateNeuron):
        # Even input never turns back: all spikes of a window have one sign.
        assert bool(((emitted >= 0).all(0) | (emitted <= 0).all(0)).all())


@every
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8])
def test_every_count_within_bounds_can_be_reached(neuron: Neuron, steps: int):
    lower, upper = neuron.bounds(steps)
    wanted = torch.arange(lower, upper + 1, dtype=torch.float64)
    # v_0/θ = 1/2 puts the input half a level away from either decision.
    counts = neuron.window(wanted / upper, torch.tensor(0.5, dtype=torch.float64), steps)
    assert torch.equal(counts[-1], wanted)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_counts_are_exact_where_the_numbers_are(neuron: Neuron, dtype: torch.dtype):
    # Quarters up to 15 · 2 + 1: at most 7 significant bits, bfloat16 has 8.
    drive = torch.arange(-8, 9) / 4
    v_init = torch.tensor(0.5)
    counts = neuron.window(drive.to(dtype), v_init.to(dtype), 4)
    assert counts.dtype == dtype
    assert torch.equal(counts.double(), neuron.window(drive.double(), v_init.double(), 4))


@every
def test_an_empty_batch_stays_empty(neuron: Neuron):
    assert neuron.window(torch.zeros(0, 7), torch.tensor(0.5), 3).shape == (3, 0, 7)


@rate
@given(data=st.data(), steps=timesteps, v_init=potentials, theta=thresholds)
def test_scan_is_the_loop_over_steps_ties_included(neuron, data, steps, v_init, theta):
    currents = data.draw(st.lists(eighths, min_size=steps, max_size=steps))
    x = torch.tensor(currents, dtype=torch.float64).unsqueeze(1)
    start, threshold = x.new_tensor(v_init), x.new_tensor(theta)
    # In rational numbers: F is not taken from the arithmetic under test.
    sums = [Fraction(v_init) * Fraction(theta) + sum(map(Fraction, currents[: t + 1])) for t in range(steps)]
    levels = x.new_tensor([math.floor(s / Fraction(theta)) for s in sums]).unsqueeze(1)
    counts = neuron.scan(levels, torch.zeros_like(x[0]), steps)
    assert torch.equal(counts, loop(neuron, x, start, threshold, steps))
    lower, upper = neuron.bounds(steps)
    assert lower <= counts.min() and counts.max() <= upper


@rate
@few
@given(seed=seeds, steps=timesteps, channels=st.sampled_from([1, 7, 200]), scale=st.sampled_from([0.3, 1.0, 3.0]))
def test_scan_is_the_loop_over_steps_for_real_numbers(neuron, seed, steps, channels, scale):
    rng = generator(seed)
    theta, v_init = uniform(0.2, 3, channels, rng=rng), uniform(0, 1, channels, rng=rng)
    currents = uniform(-scale, scale, steps, channels, rng=rng) + uniform(-scale, scale, channels, rng=rng)
    reached = currents.cumsum(0) / theta + v_init
    clear = ((reached - reached.round()).abs() > MARGIN).all(0)
    counts = neuron.scan(reached.floor(), torch.zeros_like(currents[0]), steps)
    assert torch.equal(counts[:, clear], loop(neuron, currents, v_init, theta, steps)[:, clear])
    lower, upper = neuron.bounds(steps)
    assert lower <= counts.min() and counts.max() <= upper


@rate
@few
@given(seed=seeds, steps=st.integers(2, 9), data=st.data())
def test_scan_in_two_stretches_is_one_scan(neuron, seed, steps, data):
    cut = data.draw(st.integers(1, steps - 1))
    levels = uniform(-2 * steps, 2 * steps, steps, 3, 7, rng=generator(seed)).floor()
    start = torch.zeros_like(levels[0])
    first = neuron.scan(levels[:cut], start, steps)
    second = neuron.scan(levels[cut:], first[-1], steps)
    assert torch.equal(torch.cat([first, second]), neuron.scan(levels, start, steps))


@rate
def test_what_is_declared_about_single_spikes_holds_by_the_definition(neuron):
    count, v, largest, falls = torch.zeros(1), torch.zeros(1), 0.0, False
    for current in (3.0, -2.5, 2.0, -2.0):
        spikes, v = neuron.step(torch.tensor([current]), v, count, torch.tensor(1.0), 8)
        largest, falls = max(largest, float(spikes.abs())), falls or float(spikes) < 0
        count = count + spikes
    assert (neuron.emission == "graded") == (largest > 1)
    assert neuron.takes_back == falls


@every
def test_what_is_declared_about_digits_holds_for_every_positive_count(neuron):
    assert (neuron.emission == "digits") == (not isinstance(neuron, RateNeuron))
    if neuron.emission == "digits":
        values = torch.linspace(0, 1, 512, dtype=torch.float64)
        sent = torch.diff(neuron.window(values, torch.tensor(0.5, dtype=torch.float64), 6), dim=0)
        assert neuron.takes_back == bool((sent < 0).any())
