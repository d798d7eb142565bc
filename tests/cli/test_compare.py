from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def held_out(text: Path, tmp_path: Path) -> Path:
    place = tmp_path / "other.txt"
    place.write_text(text.read_text()[::-1])
    return place


def test_every_combination_has_its_rows(rows, dense: Path, text: Path, held_out: Path, tmp_path: Path) -> None:
    plot = tmp_path / "new" / "compare.svg"
    found = rows(
        "compare", dense, "--neuron", "signed_if,phase", "--timesteps", "2,4", "--coverage", "mlp,linear",
        "--data", text, "--test-data", held_out, "--tokens", 256, "--test-tokens", 128, "--window", 32,
        "--plot", plot,
    )  # fmt: skip
    stated = [row["conditions"] for row in found if row["quantity"] == "perplexity"]
    assert stated[0]["network"] == "ann"
    seen = [(c["coverage"], c["neuron"], c["timesteps"]) for c in stated[1:]]
    expected = [(c, n, t) for c in ("mlp", "linear") for n in ("signed_if", "phase") for t in (2, 4)]
    assert seen == expected
    assert sum(row["quantity"] == "spikes_per_neuron" for row in found) == len(expected)
    drawn = plot.read_text()
    assert drawn.startswith("<?xml") and "T=4" in drawn


def test_a_combination_that_a_method_does_not_offer_is_said(run, dense: Path, text: Path, held_out: Path) -> None:
    arguments = ["--data", text, "--test-data", held_out, "--tokens", 128, "--test-tokens", 64, "--window", 32]
    done = run("compare", dense, "--timesteps", "0,2", *arguments)
    assert "left out: fas with" in done.stderr and "timesteps is 0" in done.stderr
    assert "× ANN" in done.stdout and "signed_if" in done.stdout
    assert "no combination is possible" in run("compare", dense, "--timesteps", "0", *arguments, code=1).stderr


def test_unknown_names_list_the_known_ones(run, dense: Path, text: Path) -> None:
    assert "fas" in run("compare", dense, "--methods", "nothing", "--data", text, code=1).stderr


def test_a_classifier_is_compared_by_accuracy(run, classifier: Path, table: Path, tmp_path: Path) -> None:
    other = tmp_path / "dev.tsv"
    other.write_text(table.read_text())
    done = run("compare", classifier, "--timesteps", "2", "--data", table, "--test-data", other, "--tokens", 64)
    assert "− ANN" in done.stdout and "accuracy" in done.stdout
