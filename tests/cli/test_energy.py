from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import tiny_cnns
import torch
from transformers import AutoTokenizer

import fas
from fas.energy import estimate
from fas.reporting import look

SHARED = "would calibrate and measure: name other data with --calibration-data"


def test_rows_of_a_converted_model(rows, run, snn: Path, text: Path, held_out: Path) -> None:
    arguments = ["energy", snn, "--data", held_out, "--test-tokens", 128, "--new-tokens", 4]
    # Thresholds of the network of skipped inputs are not those of the text that is measured.
    assert f"{SHARED}, or leave the rivals out (--no-rivals)" in run(*arguments, code=1).stderr
    found = rows(*arguments, "--calibration-data", text)
    quantities = Counter(row["quantity"] for row in found)
    assert {"additions", "events", "energy", "energy_ratio", "break_even", "spikes_per_neuron"} <= set(quantities)
    for row in found:
        estimated = row["quantity"] in ("energy", "energy_ratio", "break_even")
        assert row["origin"] == ("estimated" if estimated else "measured"), row["quantity"]
    energies = [row["conditions"] for row in found if row["quantity"] == "energy"]
    assert {(c["phase"], c["accounting"]) for c in energies} == {
        (phase, accounting) for phase in ("prefill", "decode") for accounting in ("paper", "compute", "memory")
    }
    assert {c["energy_of"] for c in energies} >= {"snn", "ann", "twin", "twin_zeros_skipped"}
    assert {"twin_4", "twin_8_zeros_skipped", "best_twin", "sparse"} < {c["energy_of"] for c in energies}
    assert all(c["perplexity"] > 1 for c in energies)
    assert {row["conditions"].get("changed") for row in found if row["quantity"] == "energy_ratio"} > {
        None, "int32_add", "state_access", "order output", "accumulator 16",
    }  # fmt: skip
    kinds = {row["conditions"].get("kind") for row in found if row["quantity"] == "break_even"}
    assert kinds > {None, "transformer.h.*.mlp.c_proj"}
    networks = {row["conditions"]["network"] for row in found if row["quantity"] == "weight_words"}
    assert networks == {"snn", "ann"}


def test_operations_are_counted_on_the_test_part(run, snn: Path, tmp_path: Path, monkeypatch) -> None:
    for part, text in (("train", "ab"), ("test", "yz")):
        (tmp_path / f"{part}.txt").write_text(text * 500)

    def counted(_: object, batches: list, **options: object) -> None:
        raise ValueError(f"counted {sorted(torch.cat([batch['input_ids'] for batch in batches]).unique().tolist())}")

    for module in (estimate, look):
        monkeypatch.setattr(module, "count_both", counted)
    ids = sorted(AutoTokenizer.from_pretrained(snn)("yz")["input_ids"])
    for command in (["energy", snn], ["report", snn, "--out", tmp_path / "page.html"]):
        assert f"counted {ids}" in run(*command, "--data", tmp_path, "--window", 16, code=1).stderr


def test_tables_say_when_it_wins(run, snn: Path, text: Path, held_out: Path) -> None:
    shown = run(
        "energy", snn, "--data", held_out, "--calibration-data", text, "--test-tokens", 64, "--new-tokens", 0,
        "--prices", "45nm,loihi", "--by-layer",
    ).stdout  # fmt: skip
    assert "integer twin" in shown and "decode" not in shown and "By kind of layer, prefill" in shown
    assert "prefill, compute: " in shown and "wins below: " in shown and "What the memory ratio of prefill" in shown
    assert "best twin" in shown and "of inputs skipped" in shown and "perplexity" in shown
    assert (
        "transformer.h.1.mlp.c_proj" in shown
        and "Weights are kept for: time" in shown
        and "Order row: every addition" in shown
    )
    assert "loihi prices no dense network" in shown and "loihi has no price for" in shown and "> " in shown
    assert "Without a published source: evaluation" in shown


def test_a_dense_model_is_converted_for_each_coverage_and_code(
    rows, run, dense: Path, text: Path, held_out: Path, tmp_path: Path
) -> None:
    arguments = ["energy", dense, "--data", text, "--test-tokens", 64, "--new-tokens", 2, "--coverage", "mlp,linear"]
    arguments += ["--timesteps", 2, "--tokens", 128, "--neuron", "phase,signed_if", "--plot", tmp_path / "spikes.svg"]
    assert SHARED in run(*arguments, code=1).stderr
    found = rows(*arguments, "--calibration-data", held_out)
    per_neuron = [row["conditions"] for row in found if row["quantity"] == "spikes_per_neuron"]
    assert [(c["coverage"], c["neuron"], c["timesteps"], c["phase"]) for c in per_neuron] == [
        (coverage, neuron, 2, phase)
        for coverage in ("mlp", "linear") for neuron in ("phase", "signed_if") for phase in ("prefill", "decode")
    ]  # fmt: skip
    drawn = (tmp_path / "spikes.svg").read_text(encoding="utf-8")
    assert all(f"{neuron}, {coverage}" in drawn for neuron in ("phase", "signed_if") for coverage in ("mlp", "linear"))


def test_a_figure_without_perplexities_is_refused_before_the_work(
    run, dense: Path, classifier: Path, text: Path, table: Path, tmp_path: Path
) -> None:
    for model, data, more in ((dense, text, ["--no-rivals"]), (classifier, table, [])):
        # Calibration on what is measured would be refused next.
        message = run("energy", model, "--data", data, "--plot", tmp_path / "spikes.svg", *more, code=1).stderr
        assert "--plot draws the perplexities of --rivals, of models that write text: leave --plot out" in message


def test_a_classifier(rows, run, classifier: Path, table: Path, other_table: Path) -> None:
    arguments = ["energy", classifier, "--data", table, "--test-tokens", 16, "--tokens", 16, "--coverage", "linear"]
    assert SHARED in run(*arguments, code=1).stderr
    found = rows(*arguments, "--calibration-data", other_table)
    assert {row["conditions"].get("phase") for row in found} == {"prefill"}


@pytest.fixture
def plain(tmp_path: Path) -> tuple[Path, Path]:
    """The code of a plain network, and noise in two classes, to train and to test."""
    image = pytest.importorskip("PIL.Image", reason="images need Pillow")
    generator = torch.Generator().manual_seed(0)
    for part in ("train/a", "train/b", "test/a", "test/b"):
        folder = tmp_path / "images" / part
        folder.mkdir(parents=True)
        for i in range(4):
            pixels = torch.randint(256, (12, 12, 3), generator=generator, dtype=torch.uint8).numpy()
            image.fromarray(pixels).save(folder / f"{i}.png")
    file = tmp_path / "code.py"
    file.write_text("import tiny_cnns\n\ndef load_network(directory):\n    return tiny_cnns.build('vgg')\n")
    return file, tmp_path / "images"


def test_a_plain_network(rows, run, plain: tuple[Path, Path], tmp_path: Path) -> None:
    file, images = plain
    arguments = ["energy", tmp_path, "--builder", file, "--data", images, "--test-images", 4]
    assert SHARED in run(*arguments, "--images", 4, "--calibration-data", images / "test", code=1).stderr
    found = rows(*arguments, "--images", 4, "--timesteps", 2)
    assert {row["conditions"]["coverage"] for row in found} == {"linear"}
    (energy,) = (
        row
        for row in found
        if row["quantity"] == "energy" and row["conditions"]["accounting"] == "compute"
        and row["conditions"]["energy_of"] == "ann"
    )  # fmt: skip
    # Every multiplication of the dense network at 4.6 pJ: nothing but convolutions and linear layers computes.
    layers = [(3, 6, 144), (6, 7, 36), (7, 8, 36), (8, 9, 9)]
    inside = sum(outs * ins * _taps(round(size**0.5)) for ins, outs, size in layers) + 36 * 10 + 10 * 5
    assert energy["value"] == pytest.approx(4.6 * inside) and energy["unit"] == "pJ/image"
    assert "Per image, counted" in run(*arguments, "--images", 4, "--by-layer").stdout


def _taps(side: int) -> int:
    """Return the products of a kernel of 3 × 3 and one channel, padded by zeros that are not multiplied."""
    return (3 * side - 2) ** 2


def test_a_plain_network_that_was_converted(rows, run, plain: tuple[Path, Path], tmp_path: Path) -> None:
    file, images = plain
    x = tiny_cnns.images(4)
    for coverage, encoded in (("linear", True), ("mlp", False)):
        method = fas.FAS(timesteps=3, coverage=coverage)
        model = fas.convert(tiny_cnns.build("vgg"), method, probe={"x": x[:1]}, calibration=[{"x": x}])
        place = tmp_path / f"snn-{coverage}"
        model.save_pretrained(place)
        found = rows("energy", tmp_path, "--builder", file, "--spiking", place, "--data", images, "--test-images", 4)
        about = found[0]["conditions"]
        assert (about["coverage"], about["timesteps"], about["model"]) == (coverage, 3, str(place)), encoded
    message = run("energy", tmp_path, "--spiking", place, "--data", images, code=1).stderr
    assert "--spiking is for plain networks" in message


def test_neurobench(run, rows, snn: Path, text: Path) -> None:
    arguments = ["energy", snn, "--data", text, "--test-tokens", 64, "--new-tokens", 0, "--neurobench", "--no-rivals"]
    found = {row["quantity"]: row["value"] for row in rows(*arguments) if row["conditions"].get("counted_by") == "fas"}
    assert set(found) == {
        "footprint", "connection_sparsity", "activation_sparsity", "Effective_MACs", "Effective_ACs", "Dense",
        "membrane_updates",
    }  # fmt: skip
    assert 0 < found["activation_sparsity"] < 1 and found["Effective_ACs"] < found["Dense"]
    assert "NeuroBench, per sample" in run(*arguments).stdout


def test_ones_own_prices(rows, snn: Path, text: Path, tmp_path: Path) -> None:
    own = tmp_path / "chip.toml"
    own.write_text(
        'title = "t"\nreference = "r"\n[constants.fp32_add]\nvalue = 1\nunit = "pJ"\nsource = "a data sheet of ours"\n'
    )
    arguments = ["energy", snn, "--data", text, "--test-tokens", 64, "--new-tokens", 0, "--no-rivals"]
    found = rows(*arguments, "--prices", own)
    assert {row["conditions"]["prices"] for row in found if row["quantity"] == "energy"} == {"chip"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prices", "7nm"], "no cost model '7nm': choose one of 22nm, 45nm"),
        (["--prices", ","], "--prices names no cost model"),
        (["--new-tokens", "64"], "64 new tokens leave no room for a prompt"),
    ],
)
def test_what_is_refused(run, snn: Path, text: Path, arguments: list[str], message: str) -> None:
    assert message in run("energy", snn, "--data", text, *arguments, code=1).stderr


def test_data_must_be_named(run, snn: Path) -> None:
    assert "name other data (--data)" in run("energy", snn, code=1).stderr
