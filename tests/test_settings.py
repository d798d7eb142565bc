"""Settings: one list of them, checked, saved by every kind of model, and L that follows T by one rule."""

import json

import pytest
import tiny_cnns
import torch
from made import once
from tiny_models import FAMILIES, logits
from transformers import AutoModelForCausalLM

import fas
from fas.loading import Loaded
from fas.methods.qcfs_only import QCFSOnly
from fas.settings import SAVED, SETTINGS, Settings
from fas.types import Record

OTHER = {
    "network": "quantised",
    "timesteps": 3,
    "levels": 5,
    "schedule": "online",
    "operators": "instant",
    "execution": "stepped",
    "weights": "int8",
    "kernels": "torch",
}
X = tiny_cnns.images(3)


def by_attribute(model, timesteps):
    model.timesteps = timesteps


def by_loading(model, timesteps):
    Loaded("model", model, None).set(timesteps)


@once
def converted(**options):
    return fas.convert(
        FAMILIES["opt"].build(), fas.FAS(**{"timesteps": 4, "coverage": "mlp", "neuron": "signed_if", **options})
    )


@pytest.mark.parametrize("change", [by_attribute, by_loading])
@pytest.mark.parametrize(
    ("options", "trained", "expected"),
    [({}, False, 2), ({"levels": 9}, False, 9), ({}, True, 4), ({"neuron": "ternary_phase"}, False, 4)],
)
def test_levels_follow_the_time_steps_by_one_rule(change, options, trained, expected):
    model = converted(**options)
    if trained:
        model.records.append(Record("finetune", {}, {}, trains=True))
    change(model, 2)
    assert (model.timesteps, model.levels) == (2, expected)
    assert (model.fas_config.to_dict()["timesteps"], model.fas_config.to_dict()["levels"]) == (2, expected)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_an_attribute_and_is_checked(name):
    model = converted()
    setattr(model, name, OTHER[name])
    assert getattr(model, name) == getattr(model.simulation, name) == getattr(model.settings, name) == OTHER[name]
    with pytest.raises(ValueError, match=rf"{name} is 'fast'; (choose one of|expected)"):
        setattr(model, name, "fast")
    with pytest.raises(ValueError, match=f"{name} is None"):
        Settings(**{name: None})


def test_transformers_models_save_every_setting(tmp_path):
    model = fas.convert(
        FAMILIES["gpt2"].build(), fas.FAS(timesteps=4, neuron="signed_if"), calibration=[FAMILIES["gpt2"].batch()]
    )
    for name in SAVED:
        setattr(model, name, OTHER[name])
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.settings.saved() == {name: OTHER[name] for name in SAVED} and again.network == "snn"


def test_plain_modules_save_every_setting(tmp_path):
    model = fas.convert(
        tiny_cnns.build("vgg"), fas.FAS(timesteps=4, neuron="signed_if"), probe={"x": X[:1]}, calibration=[{"x": X}]
    )
    for name in SAVED:
        setattr(model, name, OTHER[name])
    model.save_pretrained(tmp_path)
    again = fas.load_module(tiny_cnns.build("vgg"), tmp_path)
    assert again.settings.saved() == {name: OTHER[name] for name in SAVED}


def test_the_configuration_is_that_of_the_model_without_asking():
    model = converted()
    model.timesteps, model.weights = 2, "int8"
    stored = json.loads(model.config.to_json_string())["quantization_config"]
    assert (stored["timesteps"], stored["levels"], stored["weights"]) == (2, 2, "int8")
    assert model.fas_config.recipe == fas.FAS(timesteps=2, levels=2, coverage="mlp", neuron="signed_if")


def test_settings_of_a_block_end_with_it():
    model = fas.convert(FAMILIES["opt"].build(), QCFSOnly(coverage="mlp"), calibration=[FAMILIES["opt"].batch()])
    before = logits(model, FAMILIES["opt"].batch())
    with model.simulation.using(timesteps=1, levels=1):
        assert (model.timesteps, model.levels) == (1, 1)
    assert (model.timesteps, model.levels) == (8, 8)
    assert torch.equal(logits(model, FAMILIES["opt"].batch()), before)
