from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest


def values(found: list[dict[str, Any]], quantity: str) -> list[float]:
    return [row["value"] for row in found if row["quantity"] == quantity]


def test_dense_perplexity_is_that_of_the_library(rows, dense: Path, text: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fas.evaluation.perplexity import perplexity

    found = rows("evaluate", dense, "--data", text, "--test-tokens", 200)
    ids = AutoTokenizer.from_pretrained(dense)(text.read_text(), return_tensors="pt").input_ids[0][:200]
    # The very same computation: equal to the last bit.
    assert values(found, "perplexity") == [perplexity(AutoModelForCausalLM.from_pretrained(dense), ids).value]
    assert found[0]["conditions"]["network"] == "ann" and found[0]["conditions"]["tokens"] == 200


def test_a_perplexity_states_what_it_depends_on(run, rows, snn: Path, text: Path, tmp_path: Path) -> None:
    arguments = ["--data", text, "--test-tokens", 200]
    (row,) = (r for r in rows("evaluate", snn, *arguments, "--window", 32) if r["quantity"] == "perplexity")
    about = row["conditions"]
    assert (about["window"], about["stride"], about["scored_tokens"], about["bos"]) == (32, 16, 199, False)
    assert row["value"] == pytest.approx(math.exp(about["nll_per_token"]))
    # And its conditions suffice to measure it again.
    again = rows("evaluate", snn, *arguments, "--window", about["window"], "--stride", about["stride"])
    assert values(again, "perplexity") == [row["value"]]


def test_the_test_part_is_scored_unless_another_is_named(rows, dense: Path, text: Path, tmp_path: Path) -> None:
    lines = text.read_text().splitlines(keepends=True)
    for part, half in (("train", lines[::2]), ("test", lines[1::2])):
        (tmp_path / f"{part}.txt").write_text("".join(half))
    scores = [
        values(rows("evaluate", dense, "--data", tmp_path, "--test-tokens", 100, *split), "perplexity")
        for split in ([], ["--split", "test"], ["--split", "train"])
    ]
    assert scores[0] == scores[1] != scores[2]


def test_every_timestep_has_its_rows(rows, snn: Path, text: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = rows("evaluate", snn, "--data", text, "--test-tokens", 128, "--timesteps", "2,4")
    assert caplog.text.count("T = 2 with the thresholds of T = 4, which costs quality") == 1
    assert [row["conditions"]["timesteps"] for row in found if row["quantity"] == "perplexity"] == [2, 4]
    assert [row["conditions"]["levels"] for row in found if row["quantity"] == "perplexity"] == [5, 9]
    few, many = values(found, "spikes_per_neuron")
    assert 0 < few < many


def test_the_three_networks(rows, dense: Path, snn: Path, text: Path) -> None:
    arguments = ["--data", text, "--test-tokens", 128]
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
    shown = run("evaluate", snn, "--data", text, "--test-tokens", 64).stdout
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


def test_levels_of_the_quantised_network_follow_the_timesteps(rows, snn: Path, text: Path) -> None:
    arguments = ["--data", text, "--test-tokens", 128, "--timesteps", "2,8"]
    quantised, spiking = (
        [row for row in rows("evaluate", snn, *arguments, "--network", network) if row["quantity"] == "perplexity"]
        for network in ("quantised", "snn")
    )
    assert [row["conditions"]["levels"] for row in quantised] == [5, 17]
    assert quantised[0]["value"] != quantised[1]["value"]
    # Layerwise both compute the same; rounding differs by order.
    assert [row["value"] for row in quantised] == pytest.approx([row["value"] for row in spiking], rel=1e-5)


def test_the_dense_network_states_no_timesteps(rows, snn: Path, text: Path) -> None:
    (row,) = rows("evaluate", snn, "--data", text, "--test-tokens", 64, "--network", "ann")
    assert not {"timesteps", "levels", "schedule"} & set(row["conditions"])


@pytest.mark.parametrize("options", [["--timesteps", "4"], ["--network", "snn"], ["--schedule", "online"]])
def test_spikes_of_a_dense_model_are_refused(run, dense: Path, text: Path, options: list[str]) -> None:
    assert "fas convert" in run("evaluate", dense, "--data", text, *options, code=1).stderr


def test_rows_longer_than_the_context_are_cut(run, rows, classifier: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.tsv"
    long.write_text("sentence\tlabel\n" + f"{'good ' * 60}\t1\nbad film\t0\n" * 4)
    rows("evaluate", classifier, "--data", long)
    run("convert", classifier, tmp_path / "snn", "--data", long)


def test_whole_scores_of_a_regressor(rows, classifier: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BertForSequenceClassification

    place, data = tmp_path / "regressor", tmp_path / "scores.tsv"
    model = BertForSequenceClassification.from_pretrained(classifier, num_labels=1, ignore_mismatched_sizes=True)
    model.save_pretrained(place)
    AutoTokenizer.from_pretrained(classifier).save_pretrained(place)
    data.write_text("sentence\tlabel\ngood film\t3\nbad film\t1\nfilm\t2\n")
    assert {row["quantity"] for row in rows("evaluate", place, "--data", data)} == {"pearson", "spearman"}


def test_a_run_that_was_interrupted_goes_on(run, rows, snn: Path, text: Path, tmp_path: Path, monkeypatch) -> None:
    from fas.evaluation import perplexity as scoring

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = ["evaluate", snn, "--data", text, "--window", 16, "--test-tokens", 64, "--timesteps", "2,3,4"]
    whole, perplexity, measured = rows(*command), scoring.perplexity, []

    def stopping(model, *arguments, **options):
        measured.append(model.timesteps)
        if measured == [2, 3]:
            raise KeyboardInterrupt
        return perplexity(model, *arguments, **options)

    monkeypatch.setattr(scoring, "perplexity", stopping)
    said = run(*command, "--json", code=130).stderr
    assert "1 parts and" in said and "run the same command again to resume" in said
    (kept,) = (tmp_path / "fas").glob("*.jsonl")
    # A line that a full disk cut short is measured again.
    kept.write_text(kept.read_text() + '["mlp', encoding="utf-8")
    assert rows(*command) == whole and measured == [2, 3, 3, 4]
    assert not list((tmp_path / "fas").iterdir())


def test_the_model_card(run, snn: Path, dense: Path, text: Path, tmp_path: Path) -> None:
    place = tmp_path / "m"
    shutil.copytree(snn, place)
    energies = tmp_path / "energy.json"
    energies.write_text(run("energy", place, "--data", text, "--test-tokens", 128, "--no-rivals", "--json").stdout)
    command = ["evaluate", place, "--data", text, "--test-tokens", 128, "--card"]
    assert "hf upload" in run(*command, "--results", energies).stderr
    card = (place / "README.md").read_text()
    assert "| perplexity |" in card and "## Energy" in card and "| 45nm | decode | memory |" in card
    assert str(tmp_path) not in card.replace(f"data {text}", "")
    assert "perplexity" not in (snn / "README.md").read_text()
    (tmp_path / "bad.json").write_text('[{"quantity": "x", "value": "much", "unit": "1"}]')
    assert "without a finite number" in run(*command, "--results", tmp_path / "bad.json", code=1).stderr
    assert "add --card" in run(*command[:-1], "--results", energies, code=2).stderr
    assert "holds no converted model" in run("evaluate", dense, *command[2:], code=1).stderr
    (place / "README.md").write_text("mine")
    assert "was not written by fas" in run(*command, code=1).stderr
