"""Steps of codes with levels to spare: nothing to come is clipped, and what is small is resolved."""

import pytest
import torch

from fas.calibration.fit import counted
from fas.calibration.fit_range import fit_range
from fas.calibration.fit_sparse import SpikeCost
from fas.neurons.outlier_aware import OutlierAware
from fas.neurons.signed_digit import SignedDigit

NEURON, STEPS = SignedDigit(), 8


def heavy(n: int, seed: int, channels: int = 500) -> torch.Tensor:
    """Values of one heavy-tailed distribution, at a scale of each channel's own."""
    generator = torch.Generator().manual_seed(seed)
    tail = torch.randn(n, channels, generator=generator) * torch.randn(n, channels, generator=generator).exp()
    return tail * torch.rand(channels, generator=torch.Generator().manual_seed(9)).add(0.1)


def test_values_beyond_those_seen_are_not_clipped():
    x, later = heavy(1024, 0), heavy(1024, 1)
    fit = fit_range(x, NEURON, STEPS, per_channel=True)
    assert bool((later.abs() > x.abs().amax(0)).any(0).float().mean() > 0.3)
    beyond = (later.abs() > fit.threshold).float().mean()
    assert float(beyond) < 3e-6
    assert fit.offset.eq(0).all() and fit.v_init.eq(0.5).all() and fit.threshold.shape == (500,)


def test_the_range_is_eight_times_the_largest_value_where_tails_are_short():
    x = torch.rand(400, 6, generator=torch.Generator().manual_seed(0)) - 0.5
    fit = fit_range(x, NEURON, STEPS, per_channel=True)
    torch.testing.assert_close(fit.threshold, 8 * x.abs().amax(0))
    exact = (counted(x, fit, NEURON, STEPS)[1] - x).square().mean(0)
    torch.testing.assert_close(fit.error, exact)
    one = fit_range(x, NEURON, STEPS, per_channel=False)
    torch.testing.assert_close(one.threshold, 8 * x.abs().amax())


def test_the_finest_step_is_that_of_the_reach():
    # One distribution at one scale: the reach is half as much again as the largest value, or the longest tail's.
    x = torch.rand(400, 6, generator=torch.Generator().manual_seed(0)) - 0.5
    peak, mean = x.abs().amax(0), x.abs().mean(0)
    fit = fit_range(x, NEURON, STEPS, per_channel=True, finest=True)
    torch.testing.assert_close(fit.threshold, torch.maximum(1.5 * peak, (peak / mean).quantile(0.999) * mean))


def test_dearer_spikes_are_fewer():
    x = heavy(600, 2, 80)
    cost = torch.linspace(0.1, 10, 80)
    spikes, errors = [], []
    for price in (1e-4, 1e-3, 1e-2, 1e-1):
        fit = fit_range(x, NEURON, STEPS, SpikeCost(cost, price), per_channel=True)
        step = fit.threshold / NEURON.resolution(STEPS)
        spikes.append(float(NEURON.spikes((x / step + 0.5).floor(), STEPS).mean()))
        errors.append(float((cost * fit.error).sum()))
    assert spikes == sorted(spikes, reverse=True) and spikes[-1] < 0.6 * spikes[0]
    assert errors == sorted(errors)


@pytest.mark.parametrize("neuron", [NEURON, SignedDigit(signed=False), OutlierAware()])
@pytest.mark.parametrize("x", [torch.zeros(5, 3), torch.ones(1, 3), torch.eye(3) * 1e6], ids=["zeros", "one", "huge"])
def test_odd_data(neuron, x):
    for per_channel in (True, False):
        for cost in (None, SpikeCost(torch.ones(3), 0.1)):
            fit = fit_range(x, neuron, STEPS, cost, per_channel=per_channel)
            assert fit.threshold.shape == ((3,) if per_channel else ())
            assert bool((fit.threshold > 0).all() and fit.threshold.isfinite().all())
            assert bool((fit.threshold >= x.abs().amax(0) * (1 - 1e-6)).all())


def test_threads_change_nothing():
    x, cost = heavy(300, 3, 200), SpikeCost(torch.linspace(0.1, 10, 200), 1e-3)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(fit_range(x, NEURON, STEPS, cost, per_channel=True).threshold)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_rarely_active_channels_do_not_coarsen_the_others():
    x = torch.rand(2000, 100, generator=torch.Generator().manual_seed(0))
    x[:, ::10] = 0
    x[::500, ::10] = 1
    fit = fit_range(x, SignedDigit(signed=False), STEPS, per_channel=True)
    # Rounded once in float32.
    assert bool((fit.threshold <= 16.001 * x.amax(0)).all())
