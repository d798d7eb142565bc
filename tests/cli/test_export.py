from __future__ import annotations

from pathlib import Path

import pytest


def test_fixed_point(rows, run, snn: Path, text: Path, tmp_path: Path) -> None:
    from fas.exporting.fixed_point import load_fixed_point

    file = tmp_path / "model.safetensors"
    found = rows("export", snn, "--to", "fixed-point", "--out", file, "--data", text, "--membrane-bits", 24)
    blocks = load_fixed_point(file)
    assert len(blocks) == 9 and {block.membrane_bits for block in blocks} == {24}
    errors = {row["conditions"]["site"]: row["value"] for row in found if row["quantity"] == "relative_error"}
    assert list(errors) == [block.path for block in blocks] and all(0 < error < 0.1 for error in errors.values())
    assert {row["conditions"]["weight_bits"] for row in found} == {8}
    scored = rows("export", snn, "--to", "fixed-point", "--out", file, "--data", text, "--test-tokens", 200)
    before, after = [row for row in scored if row["quantity"] == "perplexity"]
    assert "weight_bits" not in before["conditions"] and after["conditions"]["membrane_bits"] == 16
    assert before["conditions"]["tokens"] == 200
    # A random model is a bad one, and 8-bit weights change it a little.
    assert before["value"] != after["value"] and abs(after["value"] / before["value"] - 1) < 0.05
    assert [block.membrane_bits for block in load_fixed_point(file)] == [16] * 9
    assert {row["unit"] for row in found} == {"1", "potentials", "bits"}
    site = "transformer.h.0.mlp.c_proj"
    arguments = ["--data", text, "--site", site, "--timesteps", 2]
    shown = run("export", snn, "--to", "fixed-point", "--out", file, *arguments).stdout
    assert site in shown and "weight error" in shown
    (block,) = load_fixed_point(file)
    assert block.timesteps == 2 and block.membrane_bits == 16


def test_nir(rows, run, snn: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("nir", reason="nir is not installed: pip install 'fas[nir]'")
    from fas.exporting.nir import import_nir

    place = tmp_path / "nir"
    found = rows("export", snn, "--to", "nir", "--out", place, "--data", text, "--trace-tokens", 16)
    assert len(import_nir(place)) == 9
    assert {row["value"] for row in found if row["quantity"] == "spike_mismatches"} == {0}
    assert {row["conditions"]["tokens"] for row in found} == {16}
    # An earlier export is replaced.
    run("export", snn, "--to", "nir", "--out", place, "--data", text, "--trace-tokens", 16)
    refused = run("export", snn, "--to", "nir", "--out", tmp_path / "b", "--data", text, "--schedule", "online", code=1)
    assert "takes spikes back" in refused.stderr and not (tmp_path / "b").exists()


def test_places_that_hold_something_else(run, snn: Path, dense: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    arguments = ["--data", text]
    assert "holds other files" in run("export", snn, "--to", "nir", "--out", tmp_path, *arguments, code=1).stderr
    file = tmp_path / "notes.txt"
    assert "is a file" in run("export", snn, "--to", "nir", "--out", file, *arguments, code=1).stderr
    assert "name a file" in run("export", snn, "--to", "fixed-point", "--out", tmp_path, *arguments, code=1).stderr
    told = run("export", dense, "--to", "nir", "--out", tmp_path / "new", *arguments, code=1).stderr
    assert "is dense" in told and not (tmp_path / "new").exists()


def test_a_chip(rows, run, snn: Path, dense: Path, text: Path) -> None:
    found = rows("export", snn, "--to", "spinnaker2", "--data", text, "--trace-tokens", 64)
    whole = {row["quantity"]: row for row in found if "site" not in row["conditions"]}
    # Per block 16 → 48, 16 → 16, 16 → 64 and 64 → 16, and the vocabulary at the end.
    assert whole["neurons"]["value"] == 2 * (16 + 16 + 16 + 64) + 16
    assert whole["synapses"]["value"] == 2 * (16 * 48 + 16 * 16 + 2 * 16 * 64) + 16 * 257
    assert whole["cores"]["value"] == 18 and whole["chips"]["value"] == 1 and whole["off_chip"]["value"] == 0
    assert whole["spikes"]["origin"] == "measured" and whole["spikes"]["value"] > 0
    assert whole["deliveries"]["value"] == whole["spikes"]["value"]
    assert "message_bits" in whole["chips"]["conditions"]["assumptions"]
    shown = run("export", snn, "--to", "loihi2").stdout
    assert "loihi2" in shown and "transformer.h.0.mlp.c_proj" in shown and "Assumed" in shown
    assert "deliveries" not in shown
    assert "messages/token" in run("export", snn, "--to", "loihi2", "--data", text, "--trace-tokens", 64).stdout
    assert "is dense" in run("export", dense, "--to", "loihi2", code=1).stderr
    assert "no chip 'x'" in run("export", snn, "--to", "x", code=1).stderr
    assert "--out" in run("export", snn, "--to", "nir", "--data", text, code=1).stderr
