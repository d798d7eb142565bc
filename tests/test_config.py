"""The configuration in config.json: there and back, and what it refuses."""

import json

import pytest
import torch
from tiny_models import FAMILIES, logits
from transformers import AutoModelForCausalLM

import fas
from fas.config import FORMAT, FASConfig, build_method
from fas.errors import CheckpointError, FASError, NotCalibratedError, SiteError
from fas.methods.fas import FAS
from fas.types import Record, Site

SITE = {"path": "a.0.fc", "role": "mlp", "channels": 7, "signed": True, "activation": None, "also": ["a.0.up"]}


def test_there_and_back_through_json():
    options = {"timesteps": 3, "levels": 9, "coverage": "mlp", "exclude": ("lm_head", "*.0.*"), "fine": False}
    record = Record("calibrate", {"coarse": True}, {"seconds": 1.5}, {"a.0.fc": {"relative_error": 0.25}})
    config = FASConfig("fas", sites=[Site(**{**SITE, "also": ("a.0.up",)})], records=[record], **options)
    stored = json.loads(json.dumps(config.to_dict()))
    again = FASConfig(**stored)
    assert again.recipe == config.recipe == FAS(**options)
    assert again.sites == config.sites and again.records == config.records
    assert again.to_dict() == config.to_dict() == config.to_diff_dict()
    assert (stored["quant_method"], stored["format"], stored["version"]) == ("fas", FORMAT, fas.__version__)


def test_the_kind_of_weights_stays_and_the_kernels_do_not():
    stored = json.loads(json.dumps(FASConfig(weights="int8").to_dict()))
    assert FASConfig(**stored).to_dict()["weights"] == "int8" and "kernels" not in stored
    # A directory that was written before there was a choice.
    del stored["weights"]
    assert FASConfig(**stored).to_dict()["weights"] == "float"
    with pytest.raises(ValueError, match="weights is 'int4'; choose one of float, int8"):
        FASConfig(weights="int4")


def test_it_starts_without_sites():
    config = FASConfig(timesteps=2)
    assert config.sites is None and config.records == [] and config.recipe == FAS(timesteps=2)
    assert config.to_dict()["sites"] is None


def test_unknown_options_list_the_known():
    with pytest.raises(ValueError, match=r"'fas' has no option timestep, tau; it has timesteps, levels, coverage"):
        FASConfig(timestep=3, tau=1)
    with pytest.raises(ValueError, match="no option steps"):
        build_method("fas", {"steps": 3})


def test_unknown_methods_list_the_known():
    with pytest.raises(ValueError, match=r"no 'fat' in fas\.methods; available: .*fas"):
        FASConfig("fat")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": 0}, "timesteps is 0; expected a whole number of at least 1"),
        ({"timesteps": 2.0}, r"timesteps is 2\.0"),
        ({"timesteps": True}, "timesteps is True"),
        ({"levels": -1}, "levels is -1"),
        ({"coverage": "all"}, "coverage is 'all'; choose one of mlp, linear, full"),
        ({"granularity": "token"}, "granularity is 'token'; choose one of channel, tensor"),
        ({"schedule": "both"}, "schedule is 'both'; choose one of layerwise, online"),
        ({"operators": "sum"}, "operators is 'sum'; choose one of difference, instant"),
        ({"execution": "fast"}, "execution is 'fast'; choose one of collapsed, stepped"),
        ({"neuron": "lif"}, r"no 'lif' in fas\.neurons; available: .*clipped_count, .*phase, .*signed_if"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        FASConfig(**options)


@pytest.mark.parametrize("number", [FORMAT + 1, 0, None, str(FORMAT)])
def test_another_format(number):
    with pytest.raises(CheckpointError, match=rf"written by fas 9\.1 in format {number}, this is fas .* with format"):
        FASConfig(format=number, version="9.1")


@pytest.mark.parametrize(
    "site",
    [
        3,
        "a.0.fc",
        None,
        {},
        {"path": "a"},
        {**SITE, "more": 1},
        {**SITE, "also": None},
        {**SITE, "also": [1]},
        {**SITE, "path": 3},
        {**SITE, "role": "head"},
        {**SITE, "channels": "7"},
        {**SITE, "signed": None},
        {**SITE, "activation": 1},
    ],
)
def test_malformed_sites(site):
    with pytest.raises(CheckpointError, match="malformed site"):
        FASConfig(sites=[SITE, site])


@pytest.mark.parametrize("sites", [5, "abc", {"path": "a"}])
def test_sites_that_are_no_list(sites):
    with pytest.raises(CheckpointError, match="which is not a list"):
        FASConfig(sites=sites)


def test_an_empty_list_of_sites():
    with pytest.raises(CheckpointError, match="empty list of sites"):
        FASConfig(sites=[])


@pytest.mark.parametrize("record", [1, None, {}, {"stage": "x"}, "calibrate"])
def test_malformed_records(record):
    with pytest.raises(CheckpointError, match="malformed record"):
        FASConfig(records=[record])


@pytest.mark.parametrize("records", [1, None, {"stage": "x"}, "calibrate"])
def test_records_that_are_no_list(records):
    with pytest.raises(CheckpointError, match="which is not a list"):
        FASConfig(records=records)


@pytest.fixture
def directories(tmp_path):
    """A dense model and its converted twin on disk."""
    family = FAMILIES["gpt2"]
    model = family.build()
    model.save_pretrained(tmp_path / "dense")
    fas.convert(model, fas.FAS(timesteps=4), calibration=[family.batch()])
    model.save_pretrained(tmp_path / "snn")
    return tmp_path


def edit(directory, **quantization):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].update(quantization)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sites": None}, "names no spiking sites"),
        ({"sites": []}, "empty list of sites"),
        ({"sites": [1]}, "malformed site"),
        ({"sites": [{**SITE, "also": []}]}, r"GPT2LMHeadModel has no module a\.0\.fc; the configuration belongs to"),
        ({"format": 99}, "in format 99"),
        ({"records": [3]}, "malformed record"),
    ],
)
def test_a_damaged_directory(directories, change, message):
    edit(directories / "snn", **change)
    with pytest.raises(FASError, match=message) as raised:
        AutoModelForCausalLM.from_pretrained(directories / "snn")
    # A site that the model lacks is a matter of the model, the rest of the file.
    assert type(raised.value) is (SiteError if "has no module" in message else CheckpointError)


def test_an_option_of_another_release(directories):
    edit(directories / "snn", leak=0.5)
    with pytest.raises(ValueError, match="'fas' has no option leak; it has timesteps"):
        AutoModelForCausalLM.from_pretrained(directories / "snn")


def test_converting_on_the_way(directories):
    family = FAMILIES["gpt2"]
    config = fas.FASConfig(timesteps=4, coverage="mlp")
    model = AutoModelForCausalLM.from_pretrained(directories / "dense", quantization_config=config)
    dense = AutoModelForCausalLM.from_pretrained(directories / "dense").eval()
    inputs = family.batch()
    assert [site.path for site in model.sites] == family.mlp_paths and model.timesteps == 4
    with torch.no_grad():
        assert torch.equal(logits(model, inputs, network="ann"), dense(**inputs).logits)
    for settings in ({}, {"network": "quantised"}, {"schedule": "online"}):
        with pytest.raises(NotCalibratedError, match=r"site transformer\.h\.0\.mlp\.c_proj has no thresholds yet"):
            logits(model, inputs, **settings)
    fas.calibrate(model, [inputs])
    fas.convert(dense, fas.FAS(timesteps=4, coverage="mlp"), calibration=[inputs])
    assert torch.equal(logits(model, inputs), logits(dense, inputs))
    model.save_pretrained(directories / "new")
    again = AutoModelForCausalLM.from_pretrained(directories / "new")
    assert torch.equal(logits(again, inputs), logits(dense, inputs))


def test_one_configuration_serves_two_models(directories):
    config = fas.FASConfig(timesteps=4, coverage="mlp")
    for _ in range(2):
        model = AutoModelForCausalLM.from_pretrained(directories / "dense", quantization_config=config)
        assert [site.path for site in model.sites] == FAMILIES["gpt2"].mlp_paths


def test_an_uncalibrated_model_comes_back_uncalibrated(directories):
    model = fas.convert(FAMILIES["gpt2"].build(), fas.FAS(coverage="mlp"))
    model.save_pretrained(directories / "bare")
    loaded = AutoModelForCausalLM.from_pretrained(directories / "bare")
    with pytest.raises(NotCalibratedError, match="has no thresholds yet"):
        logits(loaded, FAMILIES["gpt2"].batch())
