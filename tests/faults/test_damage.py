"""Directories that are damaged, edited, or of another model or release: refused with what is wrong and what to do."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fas
from fas.errors import CalibrationError, CheckpointError, DataError, FASError
from fas.loading import load
from fas.storage.checksums import SUMS, check_sums, write_sums
from fas.storage.foreign import check_finite, check_neurons, is_plain_name, weight_files

Edit = Callable[[Path], None]
_WEIGHTS = "model.safetensors"


def config(**changes: Any) -> Edit:
    def edit(place: Path) -> None:
        file = place / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


def quantisation(*gone: str, **changes: Any) -> Edit:
    def edit(place: Path) -> None:
        stored = json.loads((place / "config.json").read_text())["quantization_config"]
        stored = {key: value for key, value in stored.items() if key not in gone}
        config(quantization_config={**stored, **changes})(place)

    return edit


def raw(change: Callable[[bytes], bytes]) -> Edit:
    def edit(place: Path) -> None:
        (place / _WEIGHTS).write_bytes(change((place / _WEIGHTS).read_bytes()))

    return edit


def value(ending: str, number: float) -> Edit:
    """Set the first value of the first tensor of that ending; the checksums follow, as an editor's would."""

    def edit(place: Path) -> None:
        tensors = load_file(place / _WEIGHTS)
        next(x for name, x in tensors.items() if name.endswith(ending)).view(-1)[0] = number
        save_file(tensors, place / _WEIGHTS, {"format": "pt"})
        if (place / SUMS).exists():
            write_sums(place)

    return edit


def without(ending: str) -> Edit:
    def edit(place: Path) -> None:
        tensors = load_file(place / _WEIGHTS)
        del tensors[next(name for name in tensors if name.endswith(ending))]
        save_file(tensors, place / _WEIGHTS, {"format": "pt"})
        (place / SUMS).unlink(missing_ok=True)

    return edit


def replaced(old: bytes, new: bytes) -> Edit:
    return raw(lambda data: data.replace(old, new, 1))


WEIGHTS: list[tuple[str, Edit, str]] = [
    ("truncated", raw(lambda data: data[: len(data) // 2]), "the copy is incomplete: copy it again"),
    ("empty", raw(lambda data: b""), "cannot be read .*header too small.*copy it again"),
    ("length of the header", raw(lambda data: struct.pack("<Q", 1 << 60) + data[8:]), "header too large"),
    ("a bit of the header", raw(lambda data: data[:10] + bytes([data[10] ^ 0x80]) + data[11:]), "cannot be read"),
    ("offsets", replaced(b'"data_offsets":[', b'"data_offsets":[9'), "cannot be read .*copy it again"),
    ("a shape", replaced(b'"shape":[', b'"shape":[9'), "cannot be read .*copy it again"),
    ("a type", replaced(b'"F32"', b'"F99"'), "cannot be read .*copy it again"),
    ("no weights", lambda place: (place / _WEIGHTS).unlink(), f"has neither {_WEIGHTS} nor"),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["dense", "snn"])
@pytest.mark.parametrize(("edit", "said"), [case[1:] for case in WEIGHTS], ids=[case[0] for case in WEIGHTS])
def test_weights(kind, edit, said, request, tmp_path) -> None:
    place = tmp_path / "model"
    shutil.copytree(request.getfixturevalue(kind), place)
    edit(place)
    with pytest.raises(CheckpointError, match=said):
        load(str(place))
    if kind == "dense":
        from fas.storage.sharded import Sharded

        with pytest.raises(CheckpointError):
            Sharded(place)


# Every bit of the weights counts: thresholds, potentials, weights.
@pytest.mark.parametrize("from_end", [1, 100, 5000])
def test_a_bit_of_the_payload_that_has_flipped(from_end, snn, tmp_path, run) -> None:
    place = tmp_path / "snn"
    shutil.copytree(snn, place)
    raw(lambda data: data[:-from_end] + bytes([data[-from_end] ^ 4]) + data[len(data) - from_end + 1 :])(place)
    said = run("inspect", place, code=1).stderr
    assert f"error: {place / _WEIGHTS} has changed since it was written: its SHA-256 is" in said
    assert f"copy the model again, or delete {SUMS}" in said
    (place / SUMS).unlink()
    # Without checksums a number is as good as another.
    assert load(str(place)).converted


def test_checksums_are_those_of_sha256sum(snn) -> None:
    import hashlib

    assert (snn / SUMS).read_text() == f"{hashlib.sha256((snn / _WEIGHTS).read_bytes()).hexdigest()}  {_WEIGHTS}\n"


def test_every_character_of_a_checksum_counts(tmp_path) -> None:
    (tmp_path / _WEIGHTS).write_bytes(b"weights")
    write_sums(tmp_path)
    check_sums(tmp_path)
    stated = (tmp_path / SUMS).read_text()
    for place in (0, 12, 63):
        other = "0" if stated[place] != "0" else "1"
        (tmp_path / SUMS).write_text(stated[:place] + other + stated[place + 1 :])
        with pytest.raises(CheckpointError, match="has changed since it was written"):
            check_sums(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{'0' * 64}  ../../etc/passwd\n", "is not a checksum and a name"),
        ("0123  model.safetensors\n", "is not a checksum and a name"),
        (f"{'0' * 64}  other.safetensors\n", "other.safetensors is missing"),
        ("\x00\xff", "is not a checksum and a name"),
    ],
)
def test_damaged_checksums(text, said, tmp_path) -> None:
    (tmp_path / SUMS).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=said):
        check_sums(tmp_path)


CONFIGURATIONS: list[tuple[str, str, Edit, str]] = [
    ("another architecture", "dense", config(model_type="martian"), "model type `martian`"),
    ("no architecture", "dense", lambda p: (p / "config.json").write_text("{}"), "Unrecognized model"),
    ("no object", "dense", lambda p: (p / "config.json").write_text("null"), "cannot be loaded: TypeError"),
    ("no JSON", "dense", lambda p: (p / "config.json").write_bytes(b"\xff\xfe"), "not a valid JSON file"),
    ("a number as text", "dense", config(n_head="2"), "Field 'n_head' expected int, got str"),
    ("another width", "dense", config(n_embd=32), r"is \[.*\] in the file, but config.json makes it \[.*\]: the two"),
    ("below zero", "dense", config(n_embd=-1), "cannot be loaded: RuntimeError: .*negative dimension"),
    ("an unknown activation", "dense", config(activation_function="zzz"), "cannot be loaded: KeyError: 'zzz'"),
    ("an unknown type", "dense", config(dtype="float99"), "cannot be loaded: AttributeError: .*float99"),
    ("another quantisation", "dense", config(quantization_config={"quant_method": "gptq", "bits": 4}), "cannot be"),
    ("a newer format", "snn", quantisation(format=2, version="9.9"), "written by fas 9.9 in format 2, this is fas"),
    ("a newer key", "snn", quantisation(leak=3, version="9.9"), "by fas 9.9, this is .* no option leak.*install a rel"),
    ("an unknown key", "snn", quantisation(leak=3), "'fas' has no option leak; it has timesteps"),
    ("an unknown neuron", "snn", quantisation(neuron="brain"), "no 'brain' in fas.neurons; available"),
    ("an unknown method", "snn", quantisation(method="magic"), "no 'magic' in fas.methods; available"),
    ("a method elsewhere", "snn", quantisation(method="../../evil"), "no '../../evil' in fas.methods"),
    ("no name of a method", "snn", quantisation(method=["fas"]), r"method is \['fas'\]; expected a name"),
    ("time steps as text", "snn", quantisation(timesteps="4"), "timesteps is '4'; expected a whole number"),
    ("no time steps", "snn", quantisation("timesteps"), "has sites but no timesteps"),
    ("no sites", "snn", quantisation("sites"), "names no spiking sites"),
    ("sites as text", "snn", quantisation(sites="x"), "which is not a list"),
    ("a switch as text", "snn", quantisation(gated="no"), "gated is 'no'; expected true or false"),
    ("malformed records", "snn", quantisation(records=[{"stage": "a", "settings": 1, "results": 2}]), "malformed"),
    ("NaN in v_init", "snn", value(".v_init", torch.nan), r"v_init of .* has 1 NaN or infinite values of \d+"),
    ("NaN in offset", "snn", value(".offset", torch.nan), r"offset of .* has 1 NaN or infinite"),
    ("infinite threshold", "snn", value(".log_threshold", torch.inf), r"log_threshold of .* has 1 NaN or infinite"),
    ("one NaN threshold", "snn", value(".log_threshold", torch.nan), r"log_threshold of .* has 1 NaN or infinite"),
    ("NaN in a correction", "snn", value(".correction", torch.nan), r"correction of .* has 1 NaN or infinite"),
    ("NaN in a weight", "snn", value("mlp.c_fc.weight", torch.nan), r"mlp.c_fc.weight of .* has 1 NaN or infinite"),
    ("NaN in a dense weight", "dense", value("mlp.c_fc.weight", torch.nan), r"h.0.mlp.c_fc.weight of .* has 1 NaN"),
    ("no threshold", "snn", without(".log_threshold"), "has thresholds for 8 of 9 sites"),
    ("no weight", "snn", without("mlp.c_fc.weight"), r"lacks transformer.h.0.mlp.c_fc.weight \(1 parameters\): the"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "edit", "said"), [case[1:] for case in CONFIGURATIONS], ids=[case[0] for case in CONFIGURATIONS]
)
def test_configurations_and_parameters(kind, edit, said, request, run, tmp_path) -> None:
    place = tmp_path / "model"
    shutil.copytree(request.getfixturevalue(kind), place)
    edit(place)
    import re

    ended = run("inspect", place, code=1)
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1 and ended.stdout == ""
    assert re.search(said, ended.stderr), ended.stderr


def test_older_directories_are_read(snn, tmp_path) -> None:
    # Fields younger than the directory are at their defaults; so is what names the release.
    place = tmp_path / "old"
    shutil.copytree(snn, place)
    quantisation("spike_price", "gated", "weights", "version", "format", "exclude")(place)
    (place / SUMS).unlink()
    assert load(str(place)).model.timesteps == 4


@pytest.mark.parametrize("command", ["convert", "convert --stream", "calibrate", "evaluate", "finetune", "export"])
def test_nan_weights_are_refused_by_every_command(command, dense, snn, text, run, tmp_path) -> None:
    source = dense if command.startswith("convert") else snn
    place, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(source, place)
    value("h.1.mlp.c_fc.weight", torch.nan)(place)
    name, *options = command.split()
    targets = {"evaluate": [], "export": ["--to", "nir", "--out", out]}.get(name, [out])
    said = run(name, place, *targets, "--data", text, *options, code=1).stderr
    assert "transformer.h.1.mlp.c_fc.weight of " in said and "has 1 NaN or infinite values of 1024" in said
    assert not out.exists()


def test_nan_weights_are_refused_in_python(dense) -> None:
    from transformers import AutoModelForCausalLM

    batch = {"input_ids": torch.arange(24).view(2, 12)}
    model = AutoModelForCausalLM.from_pretrained(dense)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.bias[3] = torch.inf
    with pytest.raises(
        CheckpointError, match=r"h\.0\.mlp\.c_proj\.bias of GPT2LMHeadModel has 1 NaN or infinite values"
    ):
        fas.convert(model, calibration=[batch])
    assert not isinstance(model, fas.runtime.transformers_.ConvertedModel)
    model = fas.convert(AutoModelForCausalLM.from_pretrained(dense), calibration=[batch])
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.bias[3] = torch.nan
    with pytest.raises(CheckpointError, match=r"h\.0\.mlp\.c_proj\.bias of GPT2LMHeadModel has 1 NaN"):
        fas.calibrate(model, [batch])


@pytest.mark.parametrize("method", ["fas", "fast_snn", "las", "threshold_balancing", "rate_norm"])
def test_activations_that_overflow_name_the_site(method, dense) -> None:
    from transformers import AutoModelForCausalLM

    from fas.config import build_method

    # Some methods take values of one sign only.
    model = AutoModelForCausalLM.from_pretrained(dense, activation_function="relu")
    with torch.no_grad():
        # Finite, and too large for what is computed with them.
        model.transformer.h[0].mlp.c_proj.weight.fill_(3e38)
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        fas.convert(
            model, build_method(method, {"coverage": "mlp"}), calibration=[{"input_ids": torch.arange(24).view(2, 12)}]
        )


def test_neurons_that_are_not_set_yet_are_no_damage(dense) -> None:
    from transformers import AutoModelForCausalLM

    model = fas.convert(AutoModelForCausalLM.from_pretrained(dense))
    check_neurons(model, "x")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.population.offset[1] = torch.inf
    with pytest.raises(CheckpointError, match="offset of x has 1 NaN or infinite values of 64"):
        check_neurons(model, "x")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_every_kind_of_number_is_looked_at(dtype, number) -> None:
    sound = torch.full((3, 4), torch.finfo(dtype).max, dtype=dtype)
    check_finite([("a", sound), ("b", torch.ones(0)), ("c", torch.ones(2, dtype=torch.int64))], "m")
    sound[2, 1] = number
    with pytest.raises(CheckpointError, match="b of m has 1 NaN or infinite values of 12"):
        check_finite([("a", torch.ones(2)), ("b", sound)], "m")
    check_finite([("b", sound.to("meta"))], "m")


def test_a_tokenizer_of_another_model(dense, snn, classifier, text, table, run, tmp_path) -> None:
    # Bytes beyond those of the text: the words of the classifier are few.
    for kind, source, data in (("text", dense, text), ("table", classifier, table)):
        place = tmp_path / kind
        shutil.copytree(source, place)
        (place / "tokenizer.json").unlink()
        other = classifier if kind == "text" else dense
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(other / name, place / name)
        if kind == "table":
            said = run("convert", place, tmp_path / "out", "--data", data, code=1).stderr
            assert "does not fit a model of 10 embeddings" in said and "load the tokenizer saved with this one" in said
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["convert", "calibrate", "evaluate", "generate"])
def test_token_ids_beyond_the_embedding(command, dense, snn, text, run, tmp_path) -> None:
    place, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(dense if command == "convert" else snn, place)
    tokenizer = json.loads((place / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["b"] = 5000
    (place / "tokenizer.json").write_text(json.dumps(tokenizer))
    options = ["-p", "bottles"] if command == "generate" else ["--data", text]
    said = run(command, place, *([out] if command in ("convert", "calibrate") else []), *options, code=1).stderr
    assert "token id 5000 does not fit a model of 257 embeddings" in said and "belongs to another model" in said
    assert not out.exists()


@pytest.mark.parametrize("damage", ["none", "half", "list"])
def test_no_tokenizer_and_a_damaged_one(damage, dense, text, run, tmp_path) -> None:
    place = tmp_path / "model"
    shutil.copytree(dense, place)
    (place / "tokenizer.json").unlink()
    if damage == "none":
        (place / "tokenizer_config.json").unlink()
    elif damage == "half":
        (place / "tokenizer.json").write_text((dense / "tokenizer.json").read_text()[:500])
    else:
        (place / "tokenizer.json").write_text("[]")
    said = run("convert", place, tmp_path / "out", "--data", text, code=1).stderr
    assert "has no tokenizer that can be read: copy the tokenizer's files into its directory" in said
    assert ("warning: the tokenizer of" in said) == (damage != "none")


def test_names_that_lead_elsewhere() -> None:
    assert is_plain_name("model-00001.safetensors") and is_plain_name("..a")
    for name in ("", ".", "..", "a/b", "/a", "..\\a", "a\0", "a\nb", 3, None):
        assert not is_plain_name(name)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("[" * 100_000, "is damaged"),
        ("{}", "is damaged"),
        ('{"weight_map": {}}', "is damaged"),
        ('{"weight_map": {"a": 3}}', "is damaged"),
        ('{"weight_map": {"a": "../b.safetensors"}}', "expected safetensors beside it"),
        ('{"weight_map": {"a": "/b.safetensors"}}', "expected safetensors beside it"),
        ('{"weight_map": {"a": "pytorch_model.bin"}}', "expected safetensors beside it"),
        ('{"weight_map": {"a": "b.safetensors"}}', "b.safetensors is missing"),
    ],
)
def test_an_index(index, said, tmp_path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=said):
        weight_files(tmp_path)


def test_errors_are_of_this_library() -> None:
    assert issubclass(CheckpointError, FASError) and issubclass(DataError, FASError)
