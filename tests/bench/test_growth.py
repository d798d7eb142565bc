from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fas.bench import growth
from fas.bench.growth import Point
from fas.bench.subjects import chosen


@given(st.floats(-2, 3), st.floats(1e-6, 1e3))
def test_the_exponent_of_a_power_law(power: float, factor: float) -> None:
    values = [2, 4, 8, 32]
    seconds = [factor * value**power for value in values]
    # Logarithms of exact powers: rounding only.
    assert growth.exponent(values, seconds) == pytest.approx(power, abs=1e-9)


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
