from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel


def test_rows_for_every_network(monkeypatch: pytest.MonkeyPatch, rows, dense: Path, tmp_path: Path) -> None:
    # The real model takes minutes; the path through the command is the same.
    place = shutil.copytree(dense, tmp_path / "gpt2")
    longer = GPT2Config.from_pretrained(dense, n_positions=256)
    GPT2LMHeadModel(longer).save_pretrained(place)
    monkeypatch.setattr("fas.cli._models.embedded", lambda: place)
    monkeypatch.setattr("fas.data.stdlib.stdlib_text", lambda split: ["def f(x):\n    return x + 1\n" * 40])
    found = rows("demo", "--timesteps", "2,8", "--coverage", "mlp", "--tokens", 512, "--test-tokens", 128)
    perplexities = [row["conditions"] for row in found if row["quantity"] == "perplexity"]
    assert [(c["network"], c.get("timesteps"), c.get("neuron")) for c in perplexities][:3] == [
        ("ann", None, None),
        ("quantised", 2, "signed_if"),
        ("snn", 2, "signed_if"),
    ]
    assert {c["neuron"] for c in perplexities[1:]} == {"signed_if", "ternary_phase"}
    assert any(row["quantity"] == "spikes_per_neuron" for row in found)


def test_wrong_coverage(run) -> None:
    assert "coverage is 'all'" in run("demo", "--coverage", "all", code=1).stderr


def test_a_missing_model_is_named(monkeypatch: pytest.MonkeyPatch, run, tmp_path: Path) -> None:
    monkeypatch.setattr("fas.cli._models.files", lambda package: tmp_path)
    assert "embedded model is missing" in run("inspect", "embedded", code=1).stderr
