"""Fitting uneven levels beside a search by brute force and the network's own arithmetic."""

import pytest
import torch

from fas.calibration.fit import Fit, counted
from fas.calibration.fit_uneven import fit_uneven
from fas.layers.population import Population
from fas.layers.simulation import Simulation
from fas.neurons.outlier_aware import OutlierAware


def passed_on(x, threshold, v_init, neuron, steps):
    return counted(x, Fit(threshold, torch.zeros(()), v_init, torch.zeros(())), neuron, steps)[1]


def activations(signed):
    x = torch.randn(400, 5) * torch.tensor([1.0, 0.1, 3.0, 1.0, 1.0])
    x[:4, 3] *= 30
    return x if signed else x.abs()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("steps", [2, 5])
def test_no_threshold_of_a_fine_grid_is_much_better(signed, steps):
    neuron, x = OutlierAware(signed=signed, outlier_bits=2), activations(signed)
    fit = fit_uneven(x, neuron, steps, per_channel=True)
    half = torch.full((5,), 0.5)
    exact = (passed_on(x, fit.threshold, half, neuron, steps) - x).square().mean(0)
    # Pairs of neighbours among the 400 rows are looked at as one.
    torch.testing.assert_close(fit.error, exact, rtol=5e-2, atol=0)
    grid = [
        (passed_on(x, x.abs().amax(0) * share, half, neuron, steps) - x).square().mean(0)
        for share in torch.linspace(0.1, 1, 400).tolist()
    ]
    # 16 shares against 400: the error is flat near its least.
    assert bool((exact <= 1.5 * torch.stack(grid).amin(0)).all())
    one = fit_uneven(x, neuron, steps, per_channel=False)
    assert one.threshold.shape == () and float(one.error) >= float(exact.mean())


def test_it_is_the_arithmetic_of_the_network():
    neuron, x = OutlierAware(outlier_bits=3), activations(True)
    population = Population("a", 5, neuron, Simulation(timesteps=4))
    fit = fit_uneven(x, neuron, 4, per_channel=True)
    population.set(fit.threshold, fit.offset, fit.v_init)
    with torch.no_grad():
        sent = population(x)
    # Thresholds pass through a logarithm in float32: few values within 1e-6 of a level move by one.
    expected = passed_on(x, fit.threshold, fit.v_init, neuron, 4)
    assert float(((sent - expected).abs() > 1e-5 * expected.abs().amax(0)).float().mean()) < 0.01


def test_silent_channels_keep_the_scale_of_the_layer():
    x = torch.randn(50, 3)
    x[:, 1] = 0
    fit = fit_uneven(x, OutlierAware(), 6, per_channel=True)
    assert float(fit.threshold[1]) == pytest.approx(float(x.abs().max()), rel=1e-6)
    assert bool((fit_uneven(0 * x, OutlierAware(), 6, per_channel=True).threshold > 0).all())


def test_spare_levels_widen_the_range():
    # At T = 16 the code has levels to spare: activations beyond the recorded ones will come.
    x = torch.randn(512, 3, generator=torch.Generator().manual_seed(0))
    fit = fit_uneven(x, OutlierAware(), 16, per_channel=True)
    assert bool((fit.threshold > x.abs().amax(0)).all())
