from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, dense: Path, tmp_path: Path) -> None:
    # The real model takes minutes; the path through the command is the same.
    place = shutil.copytree(dense, tmp_path / "gpt2")
    longer = GPT2Config.from_pretrained(dense, n_positions=256)
    GPT2LMHeadModel(longer).save_pretrained(place)
    monkeypatch.setattr("fas.loading.embedded", lambda: place)
    monkeypatch.setattr("fas.data.stdlib.stdlib_text", lambda split: [f"def {split}(x):\n    return x + 1\n" * 40])


_SMALL = ("--timesteps", "2,8", "--coverage", "mlp", "--tokens", 512, "--test-tokens", 128)


@pytest.mark.usefixtures("short")
def test_rows_for_every_network_and_the_page(rows, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    found = rows("demo", *_SMALL, "--page", page)
    perplexities = [row["conditions"] for row in found if row["quantity"] == "perplexity"]
    assert [(c["network"], c.get("timesteps"), c.get("neuron")) for c in perplexities] == [
        ("ann", None, None),
        ("snn", 2, "signed_if"),
        ("snn", 8, "signed_if"),
        ("snn", 2, "adaptive_digit"),
        ("snn", 8, "adaptive_digit"),
    ]
    assert any(row["quantity"] == "spikes_per_neuron" for row in found)
    figures = {path.stem for path in (page.parent / "figures").glob("*.svg")}
    assert figures == {path.stem for path in (page.parent / "figures").glob("*.png")} == {
        "quality", "comparison", "firing", "raster", "errors", "thresholds", "initial-potentials", "energy",
        "break-even", "sensitivity",
    }  # fmt: skip
    shown = page.read_text(encoding="utf-8")
    for part in ("adaptive_digit", "What it writes", "fas demo", "loihi"):
        assert part in shown, part


@pytest.mark.usefixtures("short")
def test_it_says_what_it_wrote_or_why_not(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    quick = ("demo", "--timesteps", "2", *_SMALL[2:], "--page", page)
    assert "Wrote" not in run(*quick, "--no-report").stdout and not page.exists()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "No page will be written: figures are drawn with matplotlib" in run(*quick).stdout and not page.exists()


def test_wrong_coverage(run) -> None:
    assert "coverage is 'all'" in run("demo", "--coverage", "all", code=1).stderr


def test_a_missing_model_is_named(monkeypatch: pytest.MonkeyPatch, run, tmp_path: Path) -> None:
    monkeypatch.setattr("fas.loading.files", lambda package: tmp_path)
    assert "embedded model is missing" in run("inspect", "embedded", code=1).stderr
