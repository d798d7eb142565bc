from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fas
from fas.neurons.adaptive_digit import AdaptiveDigit


def test_directory_holds_model_and_tokenizer(snn: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fas.runtime.transformers_ import ConvertedModel

    model = AutoModelForCausalLM.from_pretrained(snn)
    assert isinstance(model, ConvertedModel) and model.timesteps == 4
    assert AutoTokenizer.from_pretrained(snn)("ab").input_ids
    left = [path.name for path in snn.parent.iterdir() if path.name.startswith(".")]
    assert left == []


def test_a_gguf_file_is_named_as_a_directory_is(run, rows, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed: pip install 'fas[gguf]'")
    from tiny_gguf import llama, write_gguf

    for name in ("a.gguf", "b.gguf"):
        write_gguf(tmp_path / name, llama(tied=False))
    arguments = ["--data", text, "--tokens", 128, "--window", 32]
    assert "choose one with --gguf-file" in run("convert", tmp_path, tmp_path / "out", *arguments, code=1).stderr
    rows("convert", tmp_path / "a.gguf", tmp_path / "one", *arguments)
    rows("convert", tmp_path, tmp_path / "other", "--gguf-file", "b.gguf", *arguments)
    # Not the bytes of the files: safetensors writes its metadata in any order.
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "other"))
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_options_of_the_method_arrive(rows, dense: Path, text: Path, tmp_path: Path) -> None:
    place = tmp_path / "snn"
    options = ["--coverage", "mlp", "--neuron", "clipped_count", "--granularity", "tensor", "--no-fine"]
    options += ["--exclude", "*.0.mlp.*", "--exclude", "lm_head", "--timesteps", 3, "--schedule", "online"]
    found = rows("convert", dense, place, "--data", text, "--tokens", 256, "--window", 32, *options)
    stated = json.loads((place / "config.json").read_text())["quantization_config"]
    assert (stated["coverage"], stated["neuron"], stated["granularity"]) == ("mlp", "clipped_count", "tensor")
    assert (stated["timesteps"], stated["fine"], stated["coarse"]) == (3, False, True)
    assert stated["exclude"] == ["*.0.mlp.*", "lm_head"]
    assert [site["path"] for site in stated["sites"]] == ["transformer.h.1.mlp.c_proj"]
    errors = [row for row in found if row["quantity"] == "relative_error"]
    assert errors and errors[0]["conditions"]["site"] == "transformer.h.1.mlp.c_proj"


def test_a_log_has_an_estimate_a_line_per_block_and_a_summary(run, dense: Path, text: Path, tmp_path: Path) -> None:
    how = ["--data", text, "--tokens", 256, "--window", 32, "--exclude", "*.1.mlp.c_proj"]
    shown = run("convert", dense, tmp_path / "snn", *how)
    said = shown.stderr.splitlines()
    blocks = [i for i, line in enumerate(said) if "relative error" in line and "spikes per neuron" in line]
    assert [said[i].partition(":")[0] for i in blocks] == ["transformer.h.0", "transformer.h.1", "lm_head"]
    (estimate,) = (i for i, line in enumerate(said) if line.startswith("calibration takes about "))
    assert estimate < blocks[0] and "8 sites" in said[estimate] and "256 tokens" in said[estimate]
    summary = shown.stdout
    assert 8 <= len(summary.splitlines()) <= 14
    assert "spiking: 8 sites (2 attn.c_attn, 2 attn.c_proj, 2 mlp.c_fc, 1 mlp.c_proj, 1 lm_head)" in summary
    assert "left dense: " in summary and "(transformer.h.*.mlp.c_proj " in summary
    assert "stays float: " in summary and "normalisation at transformer.h.*.ln_1" in summary
    assert "worst site: " in summary and "relative error by layer: attn.c_attn " in summary
    # A single file has no test part to measure on.
    assert f"fas evaluate {tmp_path / 'snn'} --data TEXT" in summary and "fas generate" in summary
    quiet = run("--quiet", "convert", dense, tmp_path / "again", *how)
    assert quiet.stderr == "" and "worst site" in quiet.stdout


def test_what_is_told_is_data_too(rows, dense: Path, text: Path, tmp_path: Path) -> None:
    found = rows("convert", dense, tmp_path / "snn", "--data", text, "--tokens", 256, "--window", 32)
    figures = {(row["quantity"], row["conditions"].get("site")): row["value"] for row in found}
    assert 0 < figures["calibrate.spikes_per_neuron", None] < 8
    errors = [value for (name, _), value in figures.items() if name == "relative_error"]
    assert figures["calibrate.mean_relative_error", None] == pytest.approx(sum(errors) / len(errors))
    assert len(errors) == 9


def test_the_seed_chooses_the_data(rows, dense: Path, text: Path, tmp_path: Path) -> None:
    def errors(seed: int, name: str) -> list[float]:
        found = rows("convert", dense, tmp_path / name, "--data", text, "--tokens", 128, "--window", 16, "--seed", seed)
        return [row["value"] for row in found if row["quantity"] == "relative_error"]

    assert errors(1, "a") == errors(1, "b") != errors(2, "c")


def test_without_calibration_thresholds_stay_unset(run, dense: Path, text: Path, tmp_path: Path) -> None:
    run("convert", dense, tmp_path / "snn", "--no-calibrate")
    result = run("evaluate", tmp_path / "snn", "--data", text, code=1)
    assert "no thresholds yet" in result.stderr
    run("calibrate", tmp_path / "snn", "--data", text, "--tokens", 256)
    run("evaluate", tmp_path / "snn", "--data", text)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--timesteps", "0"], "timesteps is 0"),
        (["--method", "magic"], "available: fas"),
        (["--neuron", "brain"], "no 'brain' in fas.neurons; available: adaptive_digit"),
        (
            ["--neuron", "adaptive_digit:leest=1"],
            "keyword argument 'leest'; its fields: max_spikes, price, wide, least",
        ),
        (["--neuron", "adaptive_digit:least=much"], "its fields: max_spikes, price, wide, least"),
        (["--neuron", "adaptive_digit:least=-1"], "least is -1; expected a mean count"),
        (["--tokens", "8", "--window", "16"], "8"),
        (["--device", "warp:9"], "warp"),
    ],
)
def test_wrong_values_are_errors(run, dense: Path, text: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    result = run("convert", dense, tmp_path / "snn", "--data", text, *arguments, code=1)
    assert said in result.stderr and result.stderr.startswith("error: ")
    assert not (tmp_path / "snn").exists()


def test_a_neuron_has_the_fields_that_are_given(rows, run, dense: Path, text: Path, tmp_path: Path) -> None:
    neuron = "adaptive_digit:least=1.5:max_spikes=3"
    more = ["--neuron", neuron, "--timesteps", 5, "--coverage", "mlp", "--no-calibrate"]
    run("convert", dense, tmp_path / "snn", *more)
    config = fas.load(str(tmp_path / "snn")).model.fas_config
    assert config.recipe.neuron == AdaptiveDigit(least=1.5, max_spikes=3)
    # And so figures of codes that differ in a field are told apart.
    assert config.neuron == "adaptive_digit:max_spikes=3:least=1.5"


def test_wrong_choices_are_usage_errors(run, dense: Path, tmp_path: Path) -> None:
    for option, value in (("--coverage", "everything"), ("--schedule", "never")):
        assert value in run("convert", dense, tmp_path / "snn", option, value, code=2).stderr


def test_data_must_be_there_and_hold_text(run, dense: Path, tmp_path: Path) -> None:
    assert "no data named" in run("convert", dense, tmp_path / "snn", code=1).stderr
    (tmp_path / "empty.txt").write_text(" \n")
    assert "no text" in run("convert", dense, tmp_path / "s", "--data", tmp_path / "empty.txt", code=1).stderr
    run("convert", dense, tmp_path / "s", "--data", tmp_path / "missing.txt", code=1)
    assert not (tmp_path / "s").exists()


def test_a_converted_model_is_not_converted_again(run, snn: Path, text: Path, tmp_path: Path) -> None:
    assert "fas calibrate" in run("convert", snn, tmp_path / "twice", "--data", text, code=1).stderr


def test_damaged_directory(run, snn: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text((snn / "config.json").read_text()[:200])
    run("inspect", damaged, code=1)
    (damaged / "config.json").write_text((snn / "config.json").read_text())
    (damaged / "model.safetensors").write_bytes((snn / "model.safetensors").read_bytes()[:1000])
    run("inspect", damaged, code=1)


def test_classifier_is_calibrated_on_a_table(rows, classifier: Path, table: Path, tmp_path: Path) -> None:
    found = rows("convert", classifier, tmp_path / "snn", "--data", table, "--timesteps", 8)
    assert any(row["quantity"] == "relative_error" for row in found)
    scores = {row["quantity"]: row["value"] for row in rows("evaluate", tmp_path / "snn", "--data", table)}
    assert 0 <= scores["accuracy"] <= 1 and scores["spikes_per_neuron"] > 0


def test_nothing_else_is_replaced(
    run, dense: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = (dense / "model.safetensors").read_bytes()
    assert "would be lost" in run("convert", dense, dense, "--data", text, code=1).stderr
    assert (dense / "model.safetensors").read_bytes() == weights
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear")
    assert "other files" in run("convert", dense, tmp_path / "notes", "--data", text, code=1).stderr
    assert "is a file" in run("convert", dense, tmp_path / "notes" / "diary.txt", "--data", text, code=1).stderr
    # The current directory is a place as any other.
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for more in ([], ["--overwrite"]):
        run("convert", dense, ".", "--data", text, "--tokens", 128, "--window", 32, "--timesteps", 2, *more)
    assert {"config.json", "README.md", "tokenizer.json"} <= {path.name for path in Path.cwd().iterdir()}


def test_a_failed_save_leaves_the_old_model(
    run, dense: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerFast

    place = tmp_path / "snn"
    run("convert", dense, place, "--data", text, "--tokens", 128, "--window", 32, "--timesteps", 2)

    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device", "tokenizer.json")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
    again = ["convert", dense, place, "--data", text, "--tokens", 128, "--window", 32, "--timesteps", 3]
    assert "add --overwrite to replace it" in run(*again, code=1).stderr
    said = run(*again, "--overwrite", code=1)
    assert "no space left" in said.stderr
    assert json.loads((place / "config.json").read_text())["quantization_config"]["timesteps"] == 2
    # What has been calibrated is kept: run again, the command goes on.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["snn", "snn.calibrating"]


def test_encoder_decoder_is_calibrated_on_text(run, dense: Path, text: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(dense)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_ff=24, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    run("convert", tmp_path / "t5", tmp_path / "snn", "--data", text, "--tokens", 128, "--window", 32)


def test_images_have_no_data_here(run, text: Path, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    assert "--no-calibrate" in run("convert", tmp_path / "vit", tmp_path / "snn", "--data", text, code=1).stderr
    run("convert", tmp_path / "vit", tmp_path / "snn", "--no-calibrate")


def test_a_price_makes_spikes_fewer_and_may_change_later(rows, dense: Path, text: Path, tmp_path: Path) -> None:
    def spikes(found: list) -> float:
        values = [row["value"] for row in found if row["quantity"] == "spikes_per_neuron"]
        return sum(values) / len(values)

    how, place = ["--data", text, "--tokens", 256, "--window", 32], tmp_path / "snn"
    free = rows("convert", dense, place, *how, "--neuron", "phase")
    dear = rows("calibrate", place, *how, "--spike-price", 0.5)
    assert spikes(dear) < 0.7 * spikes(free)
    assert [row["unit"] for row in dear if row["quantity"] == "calibrate.expected_divergence"] == ["nats"]
    stated = json.loads((place / "config.json").read_text())["quantization_config"]
    assert stated["spike_price"] == 0.5
    at_once = rows("convert", dense, tmp_path / "again", *how, "--neuron", "phase", "--spike-price", 0.5)
    assert spikes(at_once) == spikes(dear)
