from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def values(found: list[dict[str, Any]], quantity: str) -> list[float]:
    return [row["value"] for row in found if row["quantity"] == quantity]


def test_dense_perplexity_is_that_of_the_library(rows, dense: Path, text: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fas.evaluate.perplexity import perplexity

    found = rows("evaluate", dense, "--data", text, "--limit-tokens", 200)
    ids = AutoTokenizer.from_pretrained(dense)(text.read_text(), return_tensors="pt").input_ids[0][:200]
    # The very same computation: equal to the last bit.
    assert values(found, "perplexity") == [perplexity(AutoModelForCausalLM.from_pretrained(dense), ids).value]
    assert found[0]["conditions"]["network"] == "ann" and found[0]["conditions"]["tokens"] == 200


def test_every_timestep_has_its_rows(rows, snn: Path, text: Path) -> None:
    found = rows("evaluate", snn, "--data", text, "--limit-tokens", 128, "--timesteps", "2,4")
    assert [row["conditions"]["timesteps"] for row in found if row["quantity"] == "perplexity"] == [2, 4]
    assert [row["conditions"]["levels"] for row in found if row["quantity"] == "perplexity"] == [5, 9]
    few, many = values(found, "spikes_per_neuron")
    assert 0 < few < many


def test_the_three_networks(rows, dense: Path, snn: Path, text: Path) -> None:
    arguments = ["--data", text, "--limit-tokens", 128]
    networks = {
        network: values(rows("evaluate", snn, *arguments, "--network", network), "perplexity")[0]
        for network in ("ann", "quantised", "snn")
    }
    assert networks["ann"] == values(rows("evaluate", dense, *arguments), "perplexity")[0]
    # Layerwise and collapsed, the spiking network computes the quantised one; rounding differs by order.
    assert networks["snn"] == pytest.approx(networks["quantised"], rel=1e-5)
    online = rows("evaluate", snn, *arguments, "--schedule", "online")
    assert online[0]["conditions"]["schedule"] == "online"


def test_classifier(rows, classifier: Path, table: Path) -> None:
    found = rows("evaluate", classifier, "--data", table)
    assert {row["quantity"] for row in found} == {"accuracy", "f1", "matthews"}


def test_a_table_is_shown_without_json(run, snn: Path, text: Path) -> None:
    shown = run("evaluate", snn, "--data", text, "--limit-tokens", 64).stdout
    assert "perplexity" in shown and "spikes_per_neuron" in shown


def test_bad_input(run, snn: Path, classifier: Path, text: Path, tmp_path: Path) -> None:
    assert "timesteps is 0" in run("evaluate", snn, "--data", text, "--timesteps", "0", code=1).stderr
    assert "2,4,8" in run("evaluate", snn, "--data", text, "--timesteps", "two", code=2).stderr
    assert "missing.txt" in run("evaluate", snn, "--data", tmp_path / "missing.txt", code=1).stderr
    (tmp_path / "empty.txt").write_text("")
    assert "no text" in run("evaluate", snn, "--data", tmp_path / "empty.txt", code=1).stderr
    assert "window" in run("evaluate", snn, "--data", text, "--window", 65, code=1).stderr
    run("evaluate", snn, "--data", text, "--network", "brain", code=2)
    run("evaluate", classifier, "--data", text, code=1)
