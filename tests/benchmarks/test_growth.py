from __future__ import annotations

import pytest
from benchmarks.suite import growth
from benchmarks.suite.growth import Point
from benchmarks.suite.subjects import chosen


def test_the_exponent_against_numpy() -> None:
    import numpy

    values, seconds = [1, 2, 4, 9], [0.5, 0.4, 3.0, 2.0]
    slope = numpy.polyfit(numpy.log(values), numpy.log(seconds), 1)[0]
    # The same least squares by another route.
    assert growth.exponent(values, seconds) == pytest.approx(slope, rel=1e-9)


def test_axes_are_walked_one_by_one() -> None:
    start = Point(timesteps=2, sequence=8, width=16, depth=1)
    axes = {"timesteps": (1, 3), "sequence": (4,), "width": (8,), "depth": (2,)}
    found = list(growth.measure(chosen(["collapsed", "spikingjelly-qwen2"]), start=start, axes=axes, rounds=1))
    assert [(axis, getattr(point, axis)) for axis, point, _ in found] == [
        ("timesteps", 1), ("timesteps", 3), ("sequence", 4), ("width", 8), ("depth", 2),
    ]  # fmt: skip
    assert found[0][1] == Point(1, 8, 16, 1)
    # The recipe for Qwen2 is absent from a GPT-2.
    assert all(timings.keys() == {"dense", "collapsed"} for _, _, timings in found)
