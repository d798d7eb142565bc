"""Settings and clock: what a block changes is undone when it ends, however it ends."""

import pytest
import torch

from fas.layers.simulation import Simulation


def test_running_declares_the_steps_and_undoes_it():
    simulation = Simulation()
    with simulation.running(range(1, 4), carry=True):
        assert (simulation.steps, simulation.carry) == (range(1, 4), True)
        with simulation.running(range(2, 3)):
            assert (simulation.steps, simulation.carry) == (range(2, 3), False)
        assert (simulation.steps, simulation.carry) == (range(1, 4), True)
    assert (simulation.steps, simulation.carry) == (None, False)


def test_settings_come_back_after_an_error():
    simulation = Simulation(network="ann", timesteps=3)
    with pytest.raises(RuntimeError, match="in the block"), simulation.using(network="snn", timesteps=9):
        with simulation.running(range(1, 10)):
            assert (simulation.network, simulation.timesteps) == ("snn", 9)
            raise RuntimeError("in the block")
    assert (simulation.network, simulation.timesteps, simulation.steps) == ("ann", 3, None)


def test_an_unknown_setting_is_refused():
    with pytest.raises(AttributeError, match="tempo"), Simulation().using(tempo=1):
        pass


@pytest.mark.parametrize("network", ["ann", "quantised", "snn"])
@pytest.mark.parametrize("schedule", ["layerwise", "online"])
def test_time_stands_in_the_batch_of_the_spiking_network_online(network, schedule):
    folds = Simulation(network=network, schedule=schedule).folds
    assert folds == (network == "snn" and schedule == "online")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_clock_is_a_column_of_the_running_steps(dtype: torch.dtype):
    simulation = Simulation()
    with simulation.running(range(3, 6)):
        clock = simulation.clock(torch.zeros(3, 2, 5, 7, dtype=dtype))
    assert clock.shape == (3, 1, 1, 1) and clock.dtype == dtype
    assert clock.flatten().tolist() == [3, 4, 5]
