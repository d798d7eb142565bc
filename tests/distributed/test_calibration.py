"""Stage 2 in several processes: the very thresholds of one, and an end where one of them is lost."""

import time

import pytest
import tasks
from crew import agreed, crew
from tiny_models import FAMILIES

from fas.errors import FASError


@pytest.mark.parametrize(
    ("family", "count", "options"),
    [
        # 48 channels and 32: one block, which one of the processes fits.
        ("gpt2", 3, {"coverage": "full", "timesteps": 8}),
        # One batch: a process without data.
        ("opt", 1, {"coverage": "linear", "timesteps": 4}),
    ],
)
def test_two_processes_find_the_thresholds_of_one(family, count, options):
    alone = agreed(crew(1, tasks.calibrated, family, count, options))
    assert agreed(crew(2, tasks.calibrated, family, count, options)) == alone


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_four_processes_find_the_thresholds_of_one_in_every_family(family):
    options = {"coverage": "linear", "timesteps": 4}
    alone = agreed(crew(1, tasks.calibrated, family, 5, options))
    assert agreed(crew(4, tasks.calibrated, family, 5, options)) == alone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "method", "options"),
    [
        ("gpt2", "fas", {"spike_price": 0.1, "timesteps": 8}),
        ("gpt2", "fas", {"neuron": "phase", "timesteps": 6}),
        # Its neurons carry no sign, so they stand behind ReLU.
        ("opt", "threshold_balancing", {"coverage": "mlp", "timesteps": 8}),
        ("gpt2", "las", {}),
    ],
)
def test_methods_agree(family, method, options):
    alone = agreed(crew(1, tasks.calibrated, family, 3, options, method))
    assert agreed(crew(2, tasks.calibrated, family, 3, options, method)) == alone


def test_channels_are_fitted_by_the_process_whose_they_are():
    # 200 channels are four blocks, of which three processes fit one or two each.
    options = {"coverage": "mlp", "timesteps": 8}
    alone = agreed(crew(1, tasks.calibrated, "gpt2", 2, options, "fas", {"n_inner": 200}))
    assert agreed(crew(3, tasks.calibrated, "gpt2", 2, options, "fas", {"n_inner": 200})) == alone


def test_other_data_in_every_process_is_refused():
    for answer in crew(2, tasks.misgiven):
        assert isinstance(answer, FASError) and "calibration batches: process 1 has other ones" in str(answer)


@pytest.mark.parametrize("how", ["killed", pytest.param("silent", marks=pytest.mark.slow)])
def test_a_lost_process_ends_the_others(how):
    began = time.monotonic()
    first, _ = crew(2, tasks.lost_in_calibration, how)
    assert isinstance(first, FASError) and "process 0 of 2 lost contact with another one" in str(first)
    # The patience of the task is 5 s, and the silent one is so for 20.
    assert time.monotonic() - began < 60


def test_the_losses_are_refused_in_several_processes():
    for answer in crew(2, tasks.aligned):
        assert isinstance(answer, ValueError) and "the losses are trained by one process, and 2" in str(answer)
