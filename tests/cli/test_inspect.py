from __future__ import annotations

from pathlib import Path


def test_dense_model_lists_sites_of_every_coverage(run, rows, dense: Path) -> None:
    found = {row["conditions"]["coverage"]: row["value"] for row in rows("inspect", dense)}
    # Two blocks; linear: query-key-value, attention output, up, down of each block, and the head; full: four
    # factors of each attention besides.
    assert found == {"mlp": 2, "linear": 9, "full": 17}
    shown = run("inspect", dense).stdout
    assert "transformer.h.1.mlp.c_proj" in shown


def test_converted_model_lists_thresholds_and_what_stays_float(run, snn: Path) -> None:
    shown = run("inspect", snn).stdout
    assert "transformer.h.0.attn.c_attn" in shown and "relative error" in shown
    assert "Stays float:" in shown and "scaled_dot_product" in shown and "normalisation" in shown


def test_operations_are_rows(rows, snn: Path) -> None:
    found = [row["conditions"] for row in rows("inspect", snn) if row["quantity"] == "operations"]
    by_what = {(about["path"], about["operation"]): about for about in found}
    head = by_what["lm_head", "linear"]
    assert (head["arrives"], head["left"], head["floats"]) == ("ternary spikes", "additions", False)
    assert by_what["transformer.h.*.ln_1", "normalisation"]["floats"]


def test_data_add_rates(rows, snn: Path, text: Path) -> None:
    found = rows("inspect", snn, "--data", text, "--test-tokens", 128)
    quantities = {row["quantity"] for row in found}
    assert quantities >= {"threshold_mean", "spikes_per_neuron", "firing_rate", "silent_share"}
    assert all(0 <= row["value"] <= 1 for row in found if row["quantity"] in ("firing_rate", "silent_share"))
