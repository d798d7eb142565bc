from __future__ import annotations

import torch
from benchmarks.suite import roofline
from benchmarks.suite.roofline import Roofline


def test_the_slower_of_both_limits_counts() -> None:
    machine = Roofline(read=10.0, copy=20.0, flops=100.0)
    assert machine.seconds(flops=500, bytes_read=10) == 5.0
    assert machine.seconds(flops=500, bytes_read=80) == 8.0


def test_what_is_measured_has_the_order_of_a_machine() -> None:
    found = roofline.measure(torch.device("cpu"), megabytes=8, side=128, rounds=1)
    # From a slow board to a large server: a wrong power of ten in bytes or seconds falls outside.
    assert 1e8 < found.read < 1e13 and 1e8 < found.copy < 1e13
    assert 1e8 < found.flops < 1e14
