from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.suite import plots, results

from fas.types import Measurement


def rows() -> list[Measurement]:
    found = []
    for subject, value in (("dense", 1.0), ("stepped", 0.5)):
        about: dict[str, Any] = {"model": "some/tiny", "subject": subject, "interquartile": [value / 2, value * 2]}
        for batch in (1, 4):
            for quantity in ("prefill.speed", "decode.speed"):
                found.append(Measurement(quantity, value, "× dense", conditions={**about, "batch": batch}))
        found.append(Measurement("memory.ratio", value, "× dense", conditions={"model": "x", "subject": subject}))
        found.append(Measurement("neuron.speed", value, "× loop", conditions={**about, "model": "none"}))
        for axis in ("timesteps", "depth"):
            for at in (2, 4):
                point = {"axis": axis, "timesteps": at, "depth": at}
                found.append(Measurement("growth", value * at, "ms", conditions={**about, **point}))
    found.append(Measurement("absent", math.nan, "1", conditions={"model": "x", "subject": "y", "reason": "z"}))
    return found


def test_everything_that_the_file_has_is_drawn(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    results.write(file, {"device": "x", "threads": 1, "load": 0.5}, rows())
    written = plots.draw(file)
    names = {"speed-tiny", "memory", "neuron", "growth"}
    assert {path.name for path in written} == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    for path in written:
        assert path.read_bytes()[:5] in (b"<?xml", b"\x89PNG\r") and path.stat().st_size > 2000


def test_a_run_that_was_cut_short_is_drawn_as_far_as_it_went(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    results.write(file, {}, [row for row in rows() if row.quantity == "prefill.speed"])
    assert {path.stem for path in plots.draw(file)} == {"speed-tiny"}
    results.write(file, {}, [])
    assert plots.draw(file) == []
