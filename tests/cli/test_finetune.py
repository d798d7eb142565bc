from __future__ import annotations

import json
from pathlib import Path


def test_network_and_control_are_written(rows, run, snn: Path, text: Path, tmp_path: Path) -> None:
    place = tmp_path / "tuned"
    found = rows("finetune", snn, place, "--data", text, "--max-steps", 2, "--window", 32, "--batch-size", 2)
    steps = {row["quantity"]: row["value"] for row in found if row["quantity"].endswith("steps")}
    assert steps == {"finetune.steps": 2, "finetune.control_steps": 2}
    run("evaluate", place, "--data", text, "--test-tokens", 64)
    shown = rows("evaluate", tmp_path / "tuned-control", "--data", text, "--test-tokens", 64)
    assert shown[0]["conditions"]["network"] == "ann"


def test_a_dense_model_is_refused(run, dense: Path, text: Path, tmp_path: Path) -> None:
    assert "fas convert" in run("finetune", dense, tmp_path / "t", "--data", text, code=1).stderr


def test_the_price_of_spikes_arrives(rows, snn: Path, text: Path, tmp_path: Path) -> None:
    how = ["--data", text, "--max-steps", 1, "--window", 32, "--batch-size", 2, "--no-control"]
    losses = {}
    for price in (0.0, 10.0):
        place = tmp_path / f"tuned-{price}"
        found = rows("finetune", snn, place, *how, "--spike-price", price)
        losses[price] = next(row["value"] for row in found if row["quantity"] == "finetune.train_loss")
        records = json.loads((place / "config.json").read_text())["quantization_config"]["records"]
        assert records[-1]["settings"]["spike_price"] == price
    # A neuron sends a tenth of a spike and more.
    assert losses[10.0] > losses[0.0] + 1


def test_a_distilled_run_says_so(rows, snn: Path, text: Path, tmp_path: Path) -> None:
    how = ["--data", text, "--max-steps", 1, "--window", 32, "--batch-size", 2, "--no-control"]
    found = rows("finetune", snn, tmp_path / "tuned", *how, "--distillation", 1)
    # A divergence from the network it was converted from, not from the text.
    assert next(row["value"] for row in found if row["quantity"] == "finetune.train_loss") < 1
    records = json.loads((tmp_path / "tuned/config.json").read_text())["quantization_config"]["records"]
    assert records[-1]["settings"]["distillation"] == 1.0


def test_calibration_for_other_time_steps_follows_what_was_trained(
    rows, run, snn: Path, text: Path, tmp_path: Path
) -> None:
    tuned, place = tmp_path / "tuned", tmp_path / "t2"
    how = ["--data", text, "--window", 32, "--batch-size", 2]
    run("finetune", snn, tuned, *how, "--max-steps", 2, "--no-control")
    run("calibrate", tuned, place, *how, "--tokens", 256, "--timesteps", 2, "--losses")
    stated = json.loads((place / "config.json").read_text())["quantization_config"]
    assert (stated["timesteps"], stated["levels"]) == (2, 4)
    assert [record["stage"] for record in stated["records"]] == ["calibrate", "finetune", "calibrate", "align"]
    refused = run("calibrate", tuned, tmp_path / "dear", *how, "--spike-price", 0.1, code=1).stderr
    assert "--spike-price moves thresholds, and these have been trained" in " ".join(refused.split())
