from __future__ import annotations

import json
from pathlib import Path

from fas import streaming


def test_streaming_gives_the_files_that_memory_gives(rows, run, dense: Path, text: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = ["--data", text, "--tokens", 256, "--window", 32, "--timesteps", 4, "--spike-price", 0]
    run("convert", dense, tmp_path / "memory", *options)
    found = rows("convert", dense, tmp_path / "streamed", *options, "--stream", "--activation-budget", "1KiB")
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("memory", "streamed")]
    ours, theirs = (model.state_dict() for model in models)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert AutoTokenizer.from_pretrained(tmp_path / "streamed")("ab").input_ids
    stated = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("memory", "streamed"))
    assert [config["quantization_config"]["data"] for config in stated] == [str(text)] * 2
    blocks = [row for row in found if row["quantity"] == "stream.block_seconds"]
    assert [row["conditions"]["block"] for row in blocks] == ["transformer.h.0", "transformer.h.1"]
    (peak,) = (row for row in found if row["quantity"] == "stream.peak_resident")
    assert peak["unit"] == "B" and peak["value"] > 2**20
    assert {row["quantity"] for row in found} >= {"calibrate.seconds", "relative_error"}


def test_each_block_is_told(run, dense: Path, text: Path, tmp_path: Path) -> None:
    options = ["--data", text, "--tokens", 64, "--window", 16, "--stream"]
    shown = run("convert", dense, tmp_path / "snn", *options)
    line = next(line for line in shown.stderr.splitlines() if line.startswith("transformer.h.0 (1 of 2): "))
    assert "relative error" in line and "spikes per neuron" in line and " left, peak memory " in line
    assert "streaming takes about " in shown.stderr and "worst site: " in shown.stdout


def test_large_checkpoints_are_streamed_by_themselves(
    run, dense: Path, text: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(streaming, "_ROOM", 0.0)
    said = run("convert", dense, tmp_path / "snn", "--data", text, "--tokens", 64, "--window", 16).stderr
    assert "(1 of 2)" in said
    assert json.loads((tmp_path / "snn" / "model.safetensors.index.json").read_text())["weight_map"]
