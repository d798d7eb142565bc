from __future__ import annotations

from pathlib import Path


def test_map(rows, run, snn: Path, dense: Path, text: Path) -> None:
    found = rows("map", snn, "--chip", "spinnaker2", "--data", text, "--tokens", 64)
    whole = {row["quantity"]: row for row in found if "site" not in row["conditions"]}
    # Per block 16 → 48, 16 → 16, 16 → 64 and 64 → 16, and the vocabulary at the end.
    assert whole["neurons"]["value"] == 2 * (16 + 16 + 16 + 64) + 16
    assert whole["synapses"]["value"] == 2 * (16 * 48 + 16 * 16 + 2 * 16 * 64) + 16 * 257
    assert whole["cores"]["value"] == 18 and whole["chips"]["value"] == 1 and whole["off_chip"]["value"] == 0
    assert whole["spikes"]["origin"] == "measured" and whole["spikes"]["value"] > 0
    assert whole["deliveries"]["value"] == whole["spikes"]["value"]
    assert "message_bits" in whole["chips"]["conditions"]["assumptions"]
    shown = run("map", snn).stdout
    assert (
        "loihi2" in shown and "transformer.h.0.mlp.c_proj" in shown and "Assumed" in shown and "deliveries" not in shown
    )
    assert "deliveries/token" in run("map", snn, "--data", text, "--tokens", 64).stdout
    assert "is dense" in run("map", dense, code=1).stderr
    assert "no chip 'x'" in run("map", snn, "--chip", "x", code=1).stderr
