"""The quality of one model: what its options choose."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks import quality

from fas.loading import embedded


def test_the_seed_chooses_the_windows_that_calibrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"name_{i} = {i}" for i in range(2000)))
    made: list[Any] = []
    monkeypatch.setattr(quality.Quality, "measure", lambda self, *_, **__: None)
    monkeypatch.setattr(quality.Quality, "run", lambda self: made.append(self))
    words = ["quality", str(embedded()), "--train", str(text), "--test", str(text), "--out", str(tmp_path / "x.json")]
    for seed in "001":
        monkeypatch.setattr(sys, "argv", [*words, "--tokens", "512", "--threads", "1", "--seed", seed])
        quality.main()
    one, same, other = ([batch["input_ids"].tolist() for batch in found.calibration] for found in made)
    assert one == same != other
