from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

SMALL = ["--tokens", 128, "--test-tokens", 64, "--window", 32]


def test_every_combination_has_its_rows(rows, dense: Path, text: Path, held_out: Path, tmp_path: Path) -> None:
    plot = tmp_path / "new" / "compare.svg"
    found = rows(
        "compare", dense, "--neuron", "signed_if,signed_digit:wide=1", "--timesteps", "2,4", "--coverage", "mlp,linear",
        "--data", text, "--test-data", held_out, *SMALL, "--plot", plot,
    )  # fmt: skip
    stated = [row["conditions"] for row in found if row["quantity"] == "perplexity"]
    assert stated[0]["network"] == "ann"
    seen = [(c["coverage"], c["neuron"], c["timesteps"]) for c in stated[1:]]
    expected = [(c, n, t) for c in ("mlp", "linear") for n in ("signed_if", "signed_digit:wide=1") for t in (2, 4)]
    assert seen == expected
    for quantity in ("spikes_per_neuron", "conversion_time", "float_operations"):
        assert sum(row["quantity"] == quantity for row in found) == len(expected)
    energies = [row for row in found if row["quantity"] == "energy"]
    assert len(energies) == 2 * len(expected) and {row["origin"] for row in energies} == {"estimated"}
    drawn = plot.read_text()
    assert drawn.startswith("<?xml") and "spikes per neuron and window" in drawn


def test_every_method_and_the_reasons_of_those_that_refuse(run, dense: Path, text: Path, held_out: Path) -> None:
    done = run(
        "compare", dense, "--methods", "all", "--timesteps", "2", "--data", text, "--test-data", held_out, *SMALL
    )
    for name in ("fas", "las", "fast_snn"):
        assert name in done.stdout
    refused = [line for line in done.stdout.splitlines() if line.startswith("refused: ")]
    # A neuron without a sign cannot carry what GELU and normalisation give.
    assert any("rate_norm, T = 2" in line and "both signs" in line for line in refused)
    assert "No control" in done.stdout and "float a: " in done.stdout and "µJ/token" in done.stdout


def test_a_method_that_refuses_leaves_the_others_as_they_are(rows, dense: Path, text: Path, held_out: Path) -> None:
    arguments = ["--timesteps", "2", "--data", text, "--test-data", held_out, *SMALL]
    alone = rows("compare", dense, *arguments)
    beside = rows("compare", dense, "--methods", "rate_norm,fast_snn,fas", *arguments)
    # Layer-wise fine-tuning changes weights: the next method starts from the dense ones all the same.
    last = [row["value"] for row in beside if row["quantity"] == "perplexity"][-1]
    assert last == [row["value"] for row in alone if row["quantity"] == "perplexity"][-1]
    (refused,) = (row["conditions"] for row in beside if row["quantity"] == "refused")
    assert refused["plan"] == "rate_norm" and "both signs" in refused["reason"]


def test_fields_behind_colons(rows, run, dense: Path, text: Path, held_out: Path) -> None:
    methods = "threshold_balancing:coverage=mlp:replace_activation=true:rule=percentile,fas:exclude=['lm_head']"
    arguments = ["--data", text, "--test-data", held_out, "--timesteps", "2", *SMALL]
    found = rows("compare", dense, "--methods", methods, "--accounting", "none", *arguments)
    plans = {row["conditions"]["plan"]: row["conditions"] for row in found if row["quantity"] == "spikes_per_neuron"}
    first, second = plans.values()
    assert (first["method"], first["coverage"], second["method"]) == ("threshold_balancing", "mlp", "fas")
    assert "rule=percentile" in next(iter(plans)) and not any(row["quantity"] == "energy" for row in found)
    message = run("compare", dense, "--methods", "fas:rule=maximum", *arguments, code=1).stderr
    assert "FIELD=VALUE" in message and "coarse" in message
    assert "--accounting" in run("compare", dense, "--accounting", "all", *arguments, code=2).stderr


def test_training_brings_the_control(run, dense: Path, text: Path, held_out: Path, tmp_path: Path) -> None:
    arguments = ["--methods", "fas,las:coverage=linear", "--timesteps", "2", "--train-steps", 2, "--data", text]
    arguments += ["--test-data", held_out, "--accounting", "none", *SMALL, "--out", tmp_path / "rows.json"]
    shown = run("compare", dense, *arguments).stdout
    found = [row for row in json.loads((tmp_path / "rows.json").read_text()) if row["quantity"] == "perplexity"]
    plans = {row["conditions"].get("plan"): row for row in found}
    assert set(plans) == {None, "control", "fas", "las"}
    assert plans["control"]["value"] != plans[None]["value"]
    assert plans["control"]["conditions"]["train_steps"] == plans["fas"]["conditions"]["train_steps"] == 2
    assert "training s" in shown and "las was not trained" in shown


def test_rate_norm_is_trained_at_the_thresholds_of_its_second_stage(
    rows, dense: Path, text: Path, held_out: Path
) -> None:
    method = "rate_norm:coverage=mlp:replace_activation=true"
    arguments = ["--methods", method, "--timesteps", "2", "--data", text, "--test-data", held_out, *SMALL]
    trained = rows("compare", dense, *arguments, "--train-steps", 2)
    plain = rows("compare", dense, *arguments)
    values = {}
    for name, found in (("trained", trained), ("plain", plain)):
        (values[name],) = (
            row["value"]
            for row in found
            if row["quantity"] == "perplexity" and row["conditions"].get("network") == "snn"
        )
    assert values["trained"] != values["plain"]
    plans = [row["conditions"].get("plan") for row in trained if row["quantity"] == "perplexity"]
    assert plans == [None, "control", "rate_norm replace_activation=true"]
    # The control has other weights and the very operations of the dense network.
    of_ann = {
        row["conditions"]["plan"]: row["value"]
        for row in trained
        if row["quantity"] == "energy" and row["conditions"]["energy_of"] == "ann"
    }
    assert of_ann["control"] == of_ann["rate_norm replace_activation=true"]


def test_what_the_neurons_of_a_method_refuse_is_a_row(rows, dense: Path, text: Path, held_out: Path) -> None:
    arguments = ["--data", text, "--test-data", held_out, "--accounting", "none", *SMALL]
    found = rows("compare", dense, "--methods", "fas", "--neuron", "ternary_phase", "--timesteps", "16,2", *arguments)
    (refused,) = (row["conditions"] for row in found if row["quantity"] == "refused")
    assert refused["timesteps"] == 16 and "ternary_phase runs at most 15 steps" in refused["reason"]
    assert [r["conditions"]["timesteps"] for r in found if r["quantity"] == "spikes_per_neuron"] == [2]


def test_a_combination_that_a_method_does_not_offer_is_said(run, dense: Path, text: Path, held_out: Path) -> None:
    arguments = ["--data", text, "--test-data", held_out, *SMALL]
    done = run("compare", dense, "--timesteps", "0,2", *arguments)
    assert "refused: fas, T = 0: timesteps is 0" in done.stdout
    assert "× ANN" in done.stdout and "adaptive_digit" in done.stdout
    assert "no combination is possible" in run("compare", dense, "--timesteps", "0", *arguments, code=1).stderr


def test_unknown_names_list_the_known_ones(run, dense: Path, text: Path) -> None:
    assert "fas" in run("compare", dense, "--methods", "nothing", "--data", text, code=1).stderr


def test_a_classifier_is_compared_by_accuracy(run, classifier: Path, table: Path, tmp_path: Path) -> None:
    other = tmp_path / "dev.tsv"
    other.write_text(table.read_text())
    arguments = ["compare", classifier, "--timesteps", "2", "--data", table, "--test-data", other, "--tokens", 64]
    assert "would calibrate and measure: name other data" in run(*arguments, code=1).stderr
    other.write_text(table.read_text().replace("film", "film film"))
    done = run(*arguments)
    assert "− ANN" in done.stdout and "accuracy" in done.stdout


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two classes of noise, six images each, to train and to test."""
    image = pytest.importorskip("PIL.Image", reason="images need Pillow")
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "test"):
        for label in "ab":
            folder = tmp_path / "images" / part / label
            folder.mkdir(parents=True)
            for i in range(6):
                pixels = torch.randint(256, (12, 12, 3), generator=generator, dtype=torch.uint8).numpy()
                image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "images"


def test_a_plain_network(run, rows, photographs: Path, tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text("import tiny_cnns\n\ndef load_network(directory):\n    return tiny_cnns.build('vgg'), {}\n")
    arguments = ["--builder", file, "--data", photographs, "--images", 8, "--test-images", 12, "--timesteps", "2"]
    methods = [
        "--methods",
        "fas,las:coverage=full,qcfs_only,rate_norm:fit_epochs=1,threshold_balancing,fast_snn:tune_epochs=0",
    ]
    found = rows("compare", tmp_path, *arguments, *methods)
    by_plan = [row["conditions"].get("plan") for row in found if row["quantity"] == "accuracy"]
    expected = ["fas", "qcfs_only", "rate_norm fit_epochs=1", "threshold_balancing", "fast_snn tune_epochs=0"]
    assert by_plan == [None, *expected]
    (refused,) = (row["conditions"] for row in found if row["quantity"] == "refused")
    assert refused["plan"] == "las" and "not a transformers model" in refused["reason"]
    assert {row["conditions"]["images"] for row in found if row["quantity"] == "accuracy"} == {12}
    assert "µJ/image" in run("compare", tmp_path, *arguments).stdout


def test_images_that_calibrate_do_not_measure_under_other_names(run, photographs: Path, tmp_path: Path) -> None:
    file = tmp_path / "network.py"
    file.write_text("import tiny_cnns\n\ndef load_network(directory):\n    return tiny_cnns.build('vgg'), {}\n")
    copy = tmp_path / "copy"
    for place in sorted((photographs / "train").glob("*/*.png")):
        (copy / place.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(place, copy / place.parent.name / f"again-{place.name}")
    arguments = ["compare", tmp_path, "--builder", file, "--images", 8, "--test-images", 12, "--timesteps", "2"]
    for data, test in ((photographs / "train", copy), (photographs, copy), (copy, copy)):
        said = run(*arguments, "--data", data, "--test-data", test, code=1).stderr
        assert "would calibrate and measure: name other data" in said


def test_a_plain_network_is_trained_beside_its_control(run, photographs: Path, tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text("import tiny_cnns\n\ndef load_network(directory):\n    return tiny_cnns.build('vgg')\n")
    methods = "fas,fast_snn,qcfs_only,rate_norm:fit_epochs=1,threshold_balancing"
    arguments = ["--builder", file, "--data", photographs, "--images", 8, "--test-images", 12, "--timesteps", "2"]
    arguments += ["--methods", methods, "--train-steps", 2, "--out", tmp_path / "rows.json"]
    shown = run("compare", tmp_path, *arguments).stdout
    found = json.loads((tmp_path / "rows.json").read_text())
    plans = [row["conditions"].get("plan") for row in found if row["quantity"] == "accuracy"]
    # The control is measured once, behind the first method that trains.
    trained = ["fas", "fast_snn", "qcfs_only", "rate_norm fit_epochs=1"]
    assert sorted(map(str, plans)) == sorted([*trained, "None", "control", "threshold_balancing"])
    assert [r["conditions"]["plan"] for r in found if r["quantity"] == "training_time"] == ["control", *trained]
    energies = [row for row in found if row["quantity"] == "energy"]
    assert {row["unit"] for row in energies} == {"pJ/image"}
    (control,) = (row["value"] for row in energies if row["conditions"]["plan"] == "control")
    assert control in [r["value"] for r in energies if r["conditions"]["energy_of"] == "ann"][:-1]
    assert "threshold_balancing was not trained" in shown and "fas was not" not in shown and "refused" not in shown


def test_a_plain_network_without_its_code(run, photographs: Path, tmp_path: Path) -> None:
    def message(source: str) -> str:
        file = tmp_path / "code.py"
        file.write_text(source)
        arguments = ["--builder", file, "--data", photographs]
        return " ".join(run("compare", tmp_path, *arguments, code=1).stderr.split())

    assert "has no function load_network" in message("x = 1\n")
    assert "expected a plain module" in message("def load_network(directory):\n    return 3\n")
    missing = run("compare", tmp_path, "--builder", tmp_path / "none.py", "--data", photographs, code=1).stderr
    assert "is not a Python file" in " ".join(missing.split())


def test_a_row_for_every_part_of_the_calibration(rows, run, dense: Path, text: Path, held_out: Path) -> None:
    arguments = ["--ablate", "--data", text, "--test-data", held_out, "--timesteps", "4", "--coverage", "mlp"]
    arguments += ["--tokens", 512, "--test-tokens", 256, "--window", 32]
    found = rows("compare", dense, *arguments)
    values = {row["conditions"].get("plan"): row["value"] for row in found if row["quantity"] == "perplexity"}
    assert list(values) == [None, "none (maximum)", "coarse", "coarse + fine", "coarse + fine + losses"]
    # The losses may find nothing that is better on what they hold out.
    assert len(set(list(values.values())[:-1])) == len(values) - 1, "two parts of the calibration do the same"
    ratios = {row["conditions"]["plan"]: row for row in found if row["quantity"] == "perplexity_ratio"}
    assert list(ratios) == list(values)[1:]
    for plan, row in ratios.items():
        low, high = row["conditions"]["interval"]
        assert row["value"] == values[plan] / values[None] and low <= row["value"] <= high
        assert row["conditions"]["confidence"] == 0.95 and "nll_by_window" not in row["conditions"]
    assert {row["conditions"]["coverage"] for row in found if "plan" in row["conditions"]} == {"mlp"}
    assert "no parts coarse and fine" in run("compare", dense, *arguments, "--methods", "fast_snn", code=1).stderr


def test_what_cannot_be_compared(run, dense: Path, snn: Path, text: Path, held_out: Path, tmp_path: Path) -> None:
    assert "--test-data" in run("compare", dense, "--data", text, code=1).stderr
    # Nor a folder whose files are for both, nor a copy.
    for name in ("one.txt", "other.txt"):
        (tmp_path / name).write_bytes(text.read_bytes())
    for test_data in ((), ("--test-data", tmp_path / "one.txt")):
        for ablate in ((), ("--ablate", "--no-losses")):
            said = run("compare", dense, "--data", tmp_path, *test_data, *ablate, code=1).stderr
            assert "would calibrate and measure" in said
    message = run("compare", snn, "--data", text, "--test-data", held_out, code=1).stderr
    assert "is converted already" in message


def test_rows_are_kept_as_they_are_measured(
    run, rows, dense: Path, text: Path, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fas import comparison

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "rows.json"
    command = ["compare", dense, "--timesteps", "2,3,4", "--data", text, "--test-data", held_out, "--out", out, *SMALL]
    convert, converted = comparison.convert, []

    def stopping(model, method, **named):
        converted.append(method.timesteps)
        if converted == [2, 3]:
            raise KeyboardInterrupt
        return convert(model, method, **named)

    monkeypatch.setattr(comparison, "convert", stopping)
    said = run(*command, code=130).stderr
    dense_row = re.search(r"^dense: perplexity (\S+)$", said, flags=re.MULTILINE)
    assert dense_row and "fas, adaptive_digit, linear, T = 2: perplexity" in said and "1 of 3 done" in said
    assert " × dense), " in said and "spikes per neuron" in said
    assert "run the same command again to resume" in said
    kept = [row for row in json.loads(out.read_text()) if row["quantity"] == "perplexity"]
    assert [row["conditions"].get("timesteps") for row in kept] == [None, 2]
    again = run(*command)
    assert "resuming: " in again.stderr and converted == [2, 3, 3, 4]
    found = [row for row in json.loads(out.read_text()) if row["quantity"] == "perplexity"]
    assert [row["conditions"].get("timesteps") for row in found] == [None, 2, 3, 4] and found[:2] == kept
    assert not list((tmp_path / "cache" / "fas").iterdir())


def test_a_combination_resumes_after_its_last_site(
    run, rows, dense: Path, text: Path, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fas.evaluation import perplexity
    from fas.stages.calibrate import Calibrate

    command = ["compare", dense, "--timesteps", "2,3", "--data", text, "--test-data", held_out, *SMALL]
    command += ["--accounting", "none", "--batch-size", 1]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "whole"))

    def figures(found: list[dict]) -> list[tuple]:
        return [(row["quantity"], row["value"]) for row in found if row["quantity"] != "conversion_time"]

    fit, fitted, limit = Calibrate._fit, [], 10**9
    score, scored, scores = perplexity._scored, [], 10**9

    def counting(stage, population, *rest):
        if len(fitted) == limit:
            raise KeyboardInterrupt
        fitted.append(population.path)
        return fit(stage, population, *rest)

    def scoring(*arguments, **named):
        if len(scored) == scores:
            raise KeyboardInterrupt
        scored.append(1)
        return score(*arguments, **named)

    monkeypatch.setattr(Calibrate, "_fit", counting)
    monkeypatch.setattr(perplexity, "_scored", scoring)
    whole = figures(rows(*command))
    every, batches = len(fitted), len(scored)
    fitted.clear()
    scored.clear()
    # In the second combination, at its third site; then while it is scored, after one of its batches.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "killed"))
    limit = every // 2 + 2
    said = run(*command, "--json", code=130).stderr
    assert (
        " batches, and the sites calibrated since, are kept in" in said
        and "run the same command again to resume" in said
    )
    limit, scores = 10**9, batches - 1
    run(*command, "--json", code=130)
    scores = 10**9
    assert figures(rows(*command)) == whole
    assert len(fitted) == every and len(scored) == batches
    assert not list((tmp_path / "killed" / "fas").iterdir())
