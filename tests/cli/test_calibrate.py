from __future__ import annotations

import json
from pathlib import Path


def test_other_timesteps_go_to_another_directory(rows, snn: Path, text: Path, tmp_path: Path, caplog) -> None:
    place = tmp_path / "t2"
    found = rows("calibrate", snn, place, "--data", text, "--tokens", 256, "--timesteps", 2)
    assert {row["conditions"]["timesteps"] for row in found} == {2} and "thresholds of T" not in caplog.text
    stated = json.loads((place / "config.json").read_text())["quantization_config"]
    # Levels that were those of T follow it.
    assert (stated["timesteps"], stated["levels"]) == (2, 2) and len(stated["records"]) == 2
    assert json.loads((snn / "config.json").read_text())["quantization_config"]["timesteps"] == 4


def test_losses_come_on_top(rows, snn: Path, text: Path, tmp_path: Path) -> None:
    found = rows("calibrate", snn, tmp_path / "a", "--data", text, "--tokens", 128, "--window", 32, "--losses")
    assert any(row["quantity"].startswith("align.") for row in found)


def test_a_dense_model_is_refused(run, dense: Path, text: Path) -> None:
    assert "fas convert" in run("calibrate", dense, "--data", text, code=1).stderr


def test_no_steps_are_refused(run, snn: Path, text: Path) -> None:
    assert "timesteps is 0" in run("calibrate", snn, "--data", text, "--timesteps", 0, code=1).stderr


def test_a_method_without_a_price_says_so(run, dense: Path, text: Path, tmp_path: Path) -> None:
    place = tmp_path / "snn"
    run("convert", dense, place, "--method", "qcfs_only", "--no-calibrate", "--coverage", "mlp", "--replace-activation")
    result = run("calibrate", place, "--data", text, "--spike-price", 0.1, code=1)
    assert "method 'qcfs_only' has no spike price: leave --spike-price out" in " ".join(result.stderr.split())
