"""Checkpoints whose weights come and go in parts."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES

import fas
from fas.errors import CheckpointError
from fas.storage.sharded import Sharded
from fas.surgery.replace import populations
from fas.surgery.sites import find_sites

NAMES = ("gpt2", "opt", "llama", "bert_mlm", "vit")


def saved(directory, name="opt", **options):
    model = FAMILIES[name].build(**options)
    model.save_pretrained(directory, max_shard_size=30_000)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_in_memory_until_it_is_asked_for(name, tmp_path):
    model = saved(tmp_path, name)
    sharded = Sharded(tmp_path)
    assert type(sharded.model) is type(model)
    assert {p.device.type for p in sharded.model.parameters()} == {"meta"}
    # Sites are found without any weight.
    assert find_sites(sharded.model) == find_sites(model)
    sharded.load(sharded.index)
    state = model.state_dict()
    for key, value in sharded.model.state_dict().items():
        assert torch.equal(value, state[key]), key
    sharded.drop(sharded.index)
    assert {p.device.type for p in sharded.model.parameters()} == {"meta"}


@pytest.mark.parametrize("name", NAMES)
def test_buffers_that_no_file_holds_are_computed(name, tmp_path):
    model = saved(tmp_path, name)
    sharded = Sharded(tmp_path)
    sharded.settle()
    buffers = dict(sharded.model.named_buffers())
    for path, value in model.named_buffers():
        assert torch.equal(buffers[path], value), path
    sharded.load(sharded.index)
    with torch.no_grad():
        batch = FAMILIES[name].batch()
        assert torch.equal(sharded.model(**batch).logits, model(**batch).logits)


def test_neurons_of_a_converted_skeleton_start_without_thresholds(tmp_path):
    saved(tmp_path)
    sharded = Sharded(tmp_path)
    fas.convert(sharded.model)
    sharded.settle()
    for population in populations(sharded.model).values():
        assert bool(population.log_threshold.isnan().all()) and not population.offset.any()
        assert bool((population.v_init == 0.5).all())


def test_one_file_without_an_index(tmp_path):
    FAMILIES["gpt2"].build().save_pretrained(tmp_path)
    sharded = Sharded(tmp_path)
    assert [file.name for file in sharded.files] == ["model.safetensors"] and len(sharded.index) > 20


def test_parts(tmp_path):
    saved(tmp_path)
    sharded = Sharded(tmp_path)
    inside = sharded.names("model.decoder.layers.1")
    assert inside and all(name.startswith("model.decoder.layers.1.") for name in inside)
    assert sharded.names("model.decoder.layers.1", below=False) == []
    assert sharded.names("model.decoder.layers.1.fc1", below=False) == sharded.names("model.decoder.layers.1.fc1")
    sharded.load(inside)
    held = {name for name, p in sharded.model.named_parameters() if p.device.type != "meta"}
    assert held == set(inside)


def test_dropping_leaves_no_second_reference(tmp_path):
    saved(tmp_path)
    sharded = Sharded(tmp_path)
    fas.convert(sharded.model)
    sharded.settle()
    layer = sharded.model.model.decoder.layers[0].fc1
    names = sharded.names("model.decoder.layers.0.fc1")
    sharded.load(names)
    with torch.no_grad(), sharded.model.simulation.using(network="ann"):
        layer(torch.ones(1, layer.in_features))
    sharded.drop(names)
    assert layer.weight.device.type == layer.dense().weight.device.type == "meta"
    assert object.__getattribute__(layer, "_dense").weight is layer.weight


def test_a_shard_holds_the_bits_of_the_files(tmp_path):
    FAMILIES["opt"].build().to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size=30_000)
    sharded = Sharded(tmp_path)
    names = sharded.names("model.decoder.layers.0")
    sizes = sharded.write(tmp_path / "part.safetensors", names, {"model.decoder.layers.0.mine": torch.ones(3)})
    found = load_file(tmp_path / "part.safetensors")
    assert set(found) == set(sizes) == {*names, "model.decoder.layers.0.mine"}
    assert sizes["model.decoder.layers.0.mine"] == 12
    whole = {}
    for file in sharded.files:
        whole |= load_file(file)
    for name in names:
        assert found[name].dtype == torch.bfloat16
        assert torch.equal(found[name].view(torch.int16), whole[sharded.index[name]["weight_name"]].view(torch.int16))


def test_no_safetensors(tmp_path):
    FAMILIES["opt"].build().config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor"):
        Sharded(tmp_path)


def test_no_class(tmp_path):
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["Imagined"]}))
    with pytest.raises(CheckpointError, match="names no class of transformers"):
        Sharded(tmp_path)


def test_no_directory_of_a_model(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        Sharded(tmp_path)


def test_a_missing_shard(tmp_path):
    saved(tmp_path)
    file = sorted(tmp_path.glob("*.safetensors"))[1]
    file.unlink()
    with pytest.raises(CheckpointError, match=f"{file.name} is missing"):
        Sharded(tmp_path)


def test_an_index_that_leads_elsewhere(tmp_path):
    saved(tmp_path / "model")
    index = tmp_path / "model" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name = next(iter(content["weight_map"]))
    save_file({name: torch.ones(1)}, tmp_path / "other.safetensors")
    content["weight_map"][name] = "../other.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"names the file '\.\./other\.safetensors'"):
        Sharded(tmp_path / "model")


@pytest.mark.parametrize("damage", ["{", "[]", '{"weight_map": 3}'])
def test_a_damaged_index(damage, tmp_path):
    saved(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(damage)
    with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
        Sharded(tmp_path)


def test_a_truncated_shard_names_itself(tmp_path):
    saved(tmp_path)
    sharded = Sharded(tmp_path)
    name = sharded.names("model.decoder.layers.1.fc1")[0]
    with open(sharded.index[name]["safetensors_file"], "r+b") as file:
        file.truncate(100)
    with pytest.raises(CheckpointError, match=rf"model-\d+-of-\d+\.safetensors: {name}: "):
        sharded.load([name])


def test_a_tensor_of_another_shape(tmp_path):
    model = FAMILIES["gpt2"].build()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["transformer.ln_f.bias"] = torch.ones(3)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    sharded = Sharded(tmp_path)
    with pytest.raises(CheckpointError, match=r"transformer\.ln_f\.bias: .*shape"):
        sharded.load(["transformer.ln_f.bias"])


def test_weights_that_are_not_there(tmp_path):
    FAMILIES["gpt2"].build().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no weights for transformer\.h\.1\.mlp\.c_fc\.weight"):
        Sharded(tmp_path)
