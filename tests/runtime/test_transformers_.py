"""Saving and loading: a directory is whole or not there, and what is damaged is refused."""

import errno
import functools
import json
import os
import subprocess
import sys

import made
import pytest
import torch
import transformers.modeling_utils
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, logits
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import fas
from fas.errors import CheckpointError, SiteError
from fas.storage.directory import check_files, read_config, whole_directory

converted = functools.partial(made.converted, seeds=(1,))


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_a_new_directory_appears_whole(tmp_path):
    target = tmp_path / "a" / "b"
    with whole_directory(target) as beside:
        assert beside.parent == target.parent and not target.exists()
        (beside / "x").write_text("1")
    assert contents(target) == {"x": b"1"} and list(target.parent.iterdir()) == [target]


def test_an_old_model_is_replaced_and_other_files_stay(tmp_path):
    target = tmp_path / "m"
    target.mkdir()
    old = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json")
    foreign = ("README.md", "tokenizer.json", "lora.safetensors", "model-00007-of-00009.safetensors")
    for name in (*old, *foreign):
        (target / name).write_text("old")
    (target / old[1]).write_text(json.dumps({"weight_map": {"a": old[0], "b": "../outside.safetensors"}}))
    (tmp_path / "outside.safetensors").write_text("mine")
    (target / "runs").mkdir()
    (target / "runs" / "log").write_text("kept")
    with whole_directory(target) as beside:
        (beside / "config.json").write_text("new")
        (beside / "model.safetensors").write_text("new")
    assert contents(target) == {
        "config.json": b"new",
        "model.safetensors": b"new",
        **dict.fromkeys(foreign, b"old"),
    }
    assert (target / "runs" / "log").read_text() == "kept"
    assert sorted(tmp_path.iterdir()) == [target, tmp_path / "outside.safetensors"]


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": [1]}', '{"other": 1}'])
def test_an_index_that_says_nothing(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with whole_directory(tmp_path) as beside:
        (beside / "model.safetensors").write_text("new")
    assert contents(tmp_path) == {"model.safetensors": b"new"}


def test_weights_of_another_kind_replace_no_weights(tmp_path):
    (tmp_path / "model.safetensors").write_text("old")
    with whole_directory(tmp_path) as beside:
        (beside / "model.fp16.safetensors").write_text("new")
    assert contents(tmp_path) == {"model.safetensors": b"old", "model.fp16.safetensors": b"new"}


def test_an_error_while_files_are_moved_puts_them_back(tmp_path, monkeypatch):
    for name in ("a", "b", "model.safetensors"):
        (tmp_path / name).write_text("old")
    (tmp_path / "runs").mkdir()
    rename = type(tmp_path).rename

    def failing(source, place):
        if source.name == "model.safetensors" and source.read_text() == "new":
            raise PermissionError("not this one")
        return rename(source, place)

    with pytest.raises(PermissionError, match="not this one"), whole_directory(tmp_path) as beside:
        for name in ("a", "c", "model.safetensors"):
            (beside / name).write_text("new")
        monkeypatch.setattr(type(tmp_path), "rename", failing)
    assert contents(tmp_path) == dict.fromkeys(("a", "b", "model.safetensors"), b"old")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["runs"]


def test_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = converted(coverage="mlp")
    model.save_pretrained(".")
    model.timesteps = 3
    model.save_pretrained(".")
    assert os.path.samefile(os.getcwd(), tmp_path) and not list(tmp_path.glob(".*"))
    assert AutoModelForCausalLM.from_pretrained(".").timesteps == 3


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_stays_one(tmp_path, dangling):
    place, link = tmp_path / "disk" / "m", tmp_path / "link"
    place.parent.mkdir()
    if not dangling:
        place.mkdir()
        (place / "notes.txt").write_text("mine")
    link.symlink_to(place)
    with whole_directory(link) as beside:
        (beside / "x").write_text("1")
    assert link.is_symlink() and contents(place) == {"x": b"1", **({} if dangling else {"notes.txt": b"mine"})}
    assert {path.name for path in tmp_path.rglob("*")} == {"disk", "m", "link", *contents(place)}


@pytest.mark.parametrize("error", [RuntimeError("midway"), KeyboardInterrupt("midway")])
def test_an_error_midway_leaves_the_old_state(tmp_path, error):
    target = tmp_path / "m"
    with pytest.raises(type(error), match="midway"), whole_directory(target) as beside:
        (beside / "x").write_text("1")
        raise error
    assert list(tmp_path.iterdir()) == []
    target.mkdir()
    (target / "config.json").write_text("old")
    with pytest.raises(type(error), match="midway"), whole_directory(target) as beside:
        (beside / "config.json").write_text("new")
        raise error
    assert contents(target) == {"config.json": b"old"} and list(tmp_path.iterdir()) == [target]


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "m").write_text("I am a file")
    with pytest.raises(NotADirectoryError, match="m is a file; name a directory to save to"):
        converted(coverage="mlp").save_pretrained(tmp_path / "m")
    assert (tmp_path / "m").read_text() == "I am a file" and len(list(tmp_path.iterdir())) == 1


def test_the_directory_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with whole_directory(tmp_path / "m"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, existing):
    model, target = converted(coverage="mlp"), tmp_path / "m"
    if existing:
        model.save_pretrained(target)
    before = contents(target) if existing else None
    model.timesteps = 9

    def full(tensors, filename, **_):
        with open(filename, "wb") as file:
            file.write(b"the beginning")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transformers.modeling_utils, "safe_save_file", full)
    with pytest.raises(OSError, match="No space left on device"):
        model.save_pretrained(target)
    assert [path.name for path in tmp_path.iterdir()] == (["m"] if existing else [])
    if existing:
        assert contents(target) == before


def test_shards_go_when_a_model_of_one_file_comes(tmp_path):
    model, target = converted(), tmp_path / "m"
    model.save_pretrained(target, max_shard_size="20KB")
    assert len(list(target.glob("*.safetensors"))) > 1
    answer = logits(model, FAMILIES["gpt2"].batch())
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(target), FAMILIES["gpt2"].batch()), answer)
    (target / "notes.txt").write_text("kept")
    model.save_pretrained(target)
    assert [path.name for path in target.glob("*.safetensors*")] == ["model.safetensors"]
    assert (target / "notes.txt").read_text() == "kept"
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(target), FAMILIES["gpt2"].batch()), answer)


def test_whole_weights_are_still_whole_after_loading(tmp_path):
    model = converted()
    model.weights = "int8"
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.weights == "int8"
    batch = FAMILIES["gpt2"].batch()
    assert torch.equal(logits(again, batch), logits(model, batch))


def test_saving_where_one_has_loaded_from(tmp_path):
    converted().save_pretrained(tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    answer = logits(model, FAMILIES["gpt2"].batch())
    model.save_pretrained(tmp_path / "m")
    # The loaded weights may be mapped from the file that has been replaced.
    assert torch.equal(logits(model, FAMILIES["gpt2"].batch()), answer)


def test_settings_of_the_moment_are_saved(tmp_path):
    model = converted(neuron="signed_if")
    settings = {"timesteps": 6, "levels": 5, "schedule": "online", "operators": "instant", "execution": "stepped"}
    for name, value in settings.items():
        setattr(model, name, value)
    answer = logits(model, FAMILIES["gpt2"].batch())
    model.network = "ann"
    model.save_pretrained(tmp_path / "m")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert {name: getattr(loaded, name) for name in settings} == settings
    # A converted model spikes, whatever the last call was.
    assert loaded.network == "snn"
    assert torch.equal(logits(loaded, FAMILIES["gpt2"].batch()), answer)
    stored = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert {name: stored[name] for name in settings} == settings
    assert stored["quant_method"] == "fas" and stored["coverage"] == "linear"


def test_the_weights_file_is_marked(tmp_path):
    converted().save_pretrained(tmp_path / "m")
    with safe_open(tmp_path / "m" / "model.safetensors", framework="pt") as file:
        assert file.metadata()["fas_version"] == fas.__version__


def test_another_head_on_the_same_body(tmp_path):
    # Sites of the head that was left behind belong to no module of the new model.
    converted().save_pretrained(tmp_path / "m")
    with pytest.raises(SiteError, match=r"GPT2ForSequenceClassification has no module lm_head"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "m")


@pytest.fixture
def directory(tmp_path):
    converted().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize("size", [0, 4, 100, -1000])
def test_truncated_weights(directory, size):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(
        CheckpointError, match=r"safetensors cannot be read .*; it is damaged or the copy is incomplete"
    ):
        AutoModelForCausalLM.from_pretrained(directory)


def test_dense_weights_under_a_converted_configuration(directory, tmp_path):
    FAMILIES["gpt2"].build().save_pretrained(tmp_path / "dense")
    (directory / "model.safetensors").write_bytes((tmp_path / "dense" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="thresholds for 0 of 9 sites: it is dense or incomplete"):
        AutoModelForCausalLM.from_pretrained(directory)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("lm_head.neuron.log_threshold", "thresholds for 8 of 9 sites"),
        ("transformer.h.0.mlp.c_fc.neuron.offset", "offset"),
        ("transformer.h.0.mlp.c_fc.neuron.v_init", "v_init"),
        ("transformer.h.0.mlp.c_fc.correction", "correction"),
    ],
)
def test_a_parameter_is_missing(directory, lost, message):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    del tensors[lost]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        AutoModelForCausalLM.from_pretrained(directory)


def test_no_files_are_nothing_to_check():
    check_files((), fas.FAS().select(FAMILIES["gpt2"].build()))


def test_reading_a_configuration(directory):
    assert read_config(directory)["model_type"] == "gpt2"
    (directory / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is damaged .*; copy or convert the model again"):
        read_config(directory)
    (directory / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        read_config(directory)
    (directory / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"m has no config\.json: it is not a model directory"):
        read_config(directory)


def python(code):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


LOADING = """
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({!r})
print(type(model).__name__, model.timesteps, len(model.sites))
"""


def test_importing_is_cheap_and_may_come_first(directory):
    out = python(
        "import sys, fas; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)));"
        "print(sorted(dir(fas)) == sorted(fas.__all__), callable(fas.convert), callable(fas.convert))"
        + LOADING.format(str(directory))
    )
    assert out.split("\n")[:3] == ["[]", "True True True", "GPT2LMHeadModel 4 9"]


def test_the_quantisers_of_transformers_may_come_first(directory):
    out = python("import transformers.quantizers, fas" + LOADING.format(str(directory)))
    assert out.split() == ["GPT2LMHeadModel", "4", "9"]


@pytest.mark.parametrize("stated", ["fas", "fass", None])
def test_without_our_import_no_dense_network_is_built(directory, stated):
    place = directory / "config.json"
    config = json.loads(place.read_text())
    if stated is None:
        del config["quantization_config"]
    else:
        config["quantization_config"]["quant_method"] = stated
    place.write_text(json.dumps(config))
    out = python(
        "from transformers import AutoModelForCausalLM\n"
        "try:\n"
        f"    AutoModelForCausalLM.from_pretrained({str(directory)!r})\n"
        "except ValueError as error:\n"
        "    print(error)"
    )
    assert "this is a spiking network: `import fas` before from_pretrained" in out
    if stated != "fas":
        with pytest.raises(ValueError, match=r"leave quant_method 'fas' in config\.json"):
            AutoModelForCausalLM.from_pretrained(directory)


def test_a_directory_of_an_older_release_has_no_guard(directory):
    batch = FAMILIES["gpt2"].batch()
    answer = logits(AutoModelForCausalLM.from_pretrained(directory), batch)
    config = json.loads((directory / "config.json").read_text())
    assert config.pop("transformers_weights")
    (directory / "config.json").write_text(json.dumps(config))
    again = AutoModelForCausalLM.from_pretrained(directory)
    assert torch.equal(logits(again, batch), answer)
    again.save_pretrained(directory)
    assert "transformers_weights" in json.loads((directory / "config.json").read_text())
    assert not hasattr(fas.revert(again).config, "transformers_weights")
