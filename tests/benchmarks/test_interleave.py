"""The order of turns, what is timed, and the ratios."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from benchmarks.suite import interleave
from benchmarks.suite.interleave import Timing, interleaved


def sleeping(seconds: float) -> interleave.Prepare:
    return lambda: lambda: time.sleep(seconds)


def test_programs_take_turns_and_each_round_begins_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interleave, "_SHORTEST", 0.0)
    ran: list[str] = []

    def noting(name: str) -> interleave.Prepare:
        return lambda: lambda: ran.append(name)

    interleaved({name: noting(name) for name in "abc"}, rounds=3)
    # Two warm-up calls each, then the rounds.
    assert "".join(ran) == "aabbcc" + "abc" + "bca" + "cab"


def test_only_the_run_is_timed_and_not_what_makes_it_ready() -> None:
    def prepare() -> Callable[[], None]:
        time.sleep(0.3)
        return lambda: time.sleep(0.03)

    timing = interleaved({"a": prepare}, rounds=2)["a"]
    assert timing.calls == 1
    # sleep never wakes early; the preparation on top would mean that it was counted.
    assert all(0.03 <= seconds < 0.3 for seconds in timing.seconds)


def test_short_programs_run_several_times_per_sample() -> None:
    timing = interleaved({"a": sleeping(0.002)}, rounds=2)["a"]
    # 20 ms a sample; a busy machine makes the call that is counted by longer, and calls fewer.
    assert 2 <= timing.calls <= 10 and len(timing.seconds) == 2


def test_a_slow_program_leaves_and_the_reference_does_not() -> None:
    timings = interleaved({"a": sleeping(0.1), "b": sleeping(0.1)}, rounds=4, patience=0.18)
    assert len(timings["a"].seconds) == 4
    assert len(timings["b"].seconds) == 2


@pytest.mark.parametrize(("programs", "rounds"), [({}, 1), ({"a": sleeping(0)}, 0)])
def test_nothing_to_time_is_refused(programs: dict[str, interleave.Prepare], rounds: int) -> None:
    with pytest.raises(ValueError, match="nothing to time"):
        interleaved(programs, rounds=rounds)


def test_ratios_pair_the_samples_of_a_round() -> None:
    # A slow third round hits both: the ratio of medians would be the same, that of means not.
    dense, own = Timing((2.0, 2.0, 20.0), 1), Timing((1.0, 1.0, 10.0), 1)
    assert own.speed(dense) == (2.0, 2.0, 2.0)
    # Rounds in which it took no part are left out.
    assert Timing((1.0, 4.0), 1).speed(dense) == (1.25, 0.875, 1.625)
