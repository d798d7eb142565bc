"""Rows of real models: what every window gave is kept, and ratios have intervals of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from benchmarks import real_models

import fas
from fas.evaluation.interval import ratio_interval
from fas.loading import embedded
from fas.methods.fas import FAS


def test_rows_have_the_interval_of_their_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "rows.json"
    text.write_text("def first(names):\n    for name in names:\n        return name\n    return None\n" * 8)
    coarse = FAS(timesteps=2, neuron="signed_if", coverage="mlp", fine=False)
    monkeypatch.setitem(real_models.ROWS, "mlp", lambda: coarse)
    words = ["--train", str(text), "--test", str(text), "--second", str(text), "--rows", "mlp", "--window", "32"]
    words += ["--tokens", "64", "--test-tokens", "0", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["real_models", str(embedded()), *words])
    real_models.main()
    printed, (dense, row) = capsys.readouterr().out, json.loads(out.read_text())

    loaded = fas.load("embedded")
    # --test-tokens 0: the whole text.
    stream = loaded.need_tokenizer()(text.read_text())["input_ids"]
    windows = row["nll_by_window"]
    assert len(windows) == -(-len(stream) // 32) == len(dense["nll_by_window"])
    assert sum(tokens for _, tokens in windows) == len(stream) - len(windows)
    low, high = ratio_interval(windows, dense["nll_by_window"])  # type: ignore[misc]
    ratio = row["perplexity"] / dense["perplexity"]
    assert low < ratio < high and low != pytest.approx(high, rel=1e-3)
    assert printed.count(f"{ratio:.4f} ({low:.4f} to {high:.4f})") == 2
    assert "nll_by_window" not in printed

    # Rows of files that were written before.
    for old in (dense, row):
        del old["nll_by_window"], old["second_nll_by_window"]
    out.write_text(json.dumps([dense, row]))
    real_models.main()
    assert f"| mlp | 2 | {ratio:.4f} | {ratio:.4f} |" in capsys.readouterr().out
    assert json.loads(out.read_text()) == [dense, row]
