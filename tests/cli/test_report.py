from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_a_page_and_its_figures(rows, snn: Path, text: Path, tmp_path: Path) -> None:
    page, figures = tmp_path / "new" / "page.html", tmp_path / "figures"
    other = tmp_path / "rows.json"
    about = {"plan": "coarse", "coverage": "mlp", "neuron": "signed_if", "timesteps": 4, "network": "snn"}
    row = {"quantity": "perplexity", "value": 3.0, "unit": "1", "origin": "measured", "conditions": about}
    other.write_text(json.dumps([row, {**row, "value": None}]))
    found = rows(
        "report", snn, "--data", text, "--out", page, "--figures", figures, "--test-tokens", 128,
        "--counted-tokens", 64, "--results", other, "--prices", "45nm,loihi", "--window", 32,
    )  # fmt: skip
    scores = [row["conditions"] for row in found if row["quantity"] == "perplexity"]
    assert [(c["network"], c["timesteps"]) for c in scores] == [
        ("ann", 0), ("quantised", 1), ("snn", 1), ("quantised", 2), ("snn", 2), ("quantised", 4), ("snn", 4),
    ]  # fmt: skip
    shown = page.read_text(encoding="utf-8")
    for part in ("gpt2-snn", "Early", "coarse", "loihi", "transformer.h.1.mlp.c_proj", "fas report", "transformers"):
        assert part.lower() in shown.lower(), part
    assert len(list(figures.glob("*.svg"))) == len(list(figures.glob("*.png"))) >= 8


def test_a_dense_model_is_converted_for_it(run, dense: Path, text: Path, held_out: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    arguments = ["report", dense, "--data", text, "--out", page, "--test-tokens", 64, "--counted-tokens", 32]
    arguments += ["--timesteps", "8", "--coverage", "mlp", "--no-coarse", "--no-anytime", "--window", 32]
    refused = run(*arguments, code=1).stderr
    assert "would calibrate and measure: name other data with --calibration-data" in refused and not page.exists()
    done = run(*arguments, "--calibration-data", held_out)
    shown = page.read_text(encoding="utf-8")
    assert f"wrote {page}" in done.stdout and "coverage mlp" in done.stderr
    assert 'id="early-exit"' not in shown and "were not fitted again" in shown
    assert not (dense / "report.html").exists()


def test_a_classifier(run, classifier: Path, table: Path, other_table: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    arguments = ["--data", table, "--out", page, "--counted-tokens", 16, "--timesteps", "2"]
    assert "would calibrate and measure" in run("report", classifier, *arguments, code=1).stderr
    run("report", classifier, *arguments, "--calibration-data", other_table)
    shown = page.read_text(encoding="utf-8")
    assert "accuracy" in shown and "higher is better" in shown


@pytest.mark.parametrize("content", ["nothing", "[1]", '[{"quantity": 1}]', "{}"])
def test_other_files_are_refused_as_results(run, snn: Path, text: Path, tmp_path: Path, content: str) -> None:
    other = tmp_path / "rows.json"
    other.write_text(content)
    done = run("report", snn, "--data", text, "--results", other, "--out", tmp_path / "x.html", code=1)
    assert "rows.json holds no rows of a fas command" in done.stderr and not (tmp_path / "x.html").exists()


def test_fewer_counted_tokens_than_a_window(run, snn: Path, text: Path, tmp_path: Path) -> None:
    arguments = ["report", snn, "--data", text, "--out", tmp_path / "x.html", "--counted-tokens", 20]
    said = run(*arguments, "--window", 32, code=1).stderr
    assert "--counted-tokens 20 holds no window of 32 tokens (--window): pass more" in " ".join(said.split())
