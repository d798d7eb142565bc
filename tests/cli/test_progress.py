"""What a log without a terminal says of long work: where it is, how fast, and how long it will still take."""

from __future__ import annotations

import pytest

from fas.cli.program import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that have passed, to be set by the test."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_sites_share_one_rate(clock: list[float], capsys: pytest.CaptureFixture) -> None:
    log = progress.Log("calibrating")
    for done in range(1, 8):
        clock[0] = 10.0 * (done - 1)
        log(f"layers.{done}", done, 20)
    # The first site brings the way to it with it; then one takes 10 s.
    assert capsys.readouterr().err.splitlines() == [
        "calibrating: layers.4: 4 of 20, 10 s each, about 3 min left",
        "calibrating: layers.7: 7 of 20, 10 s each, about 2 min left",
    ]


def test_other_parts_have_a_rate_of_their_own(clock: list[float], capsys: pytest.CaptureFixture) -> None:
    log = progress.Log("comparing")
    log("calibrating, layers.0", 1, 2)
    clock[0] = 100.0
    log("calibrating, layers.1", 2, 2)
    clock[0] = 101.0
    log("measuring", 1, 50)
    clock[0] = 141.0
    log("measuring", 3, 50)
    assert capsys.readouterr().err.splitlines()[1:] == ["comparing: measuring: 3 of 50, 20 s each, about 16 min left"]


def test_the_same_number_of_parts_again(clock: list[float], capsys: pytest.CaptureFixture) -> None:
    log = progress.Log("comparing")
    for part in ("one", "two"):
        for done in (1, 2, 3):
            clock[0] += 7.0
            log(part, done, 3)
    clock[0] += 7.0
    log("three", 1, 3)
    # Nothing is known of the rate of what has just begun.
    assert capsys.readouterr().err.splitlines() == ["comparing: two: 2 of 3, 7 s each, about 7 s left"]
