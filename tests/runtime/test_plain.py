"""Plain convolutional networks as converted models: networks, schedules, loading and saving."""

import json

import pytest
import tiny_cnns
import torch
from made import once

import fas
from fas import registry
from fas.errors import CheckpointError, SiteError
from fas.methods.fas import FAS
from fas.runtime.plain import ConvertedModule, load_module
from fas.surgery.replace import populations, spiking_layers

NAMES = list(tiny_cnns.NETWORKS)
every = pytest.mark.parametrize("name", NAMES)


def data(rows=8):
    return [{"x": tiny_cnns.images(rows, seed=seed)} for seed in (1, 2)]


@once
def converted(name, calibrated=True, **options):
    return fas.convert(
        tiny_cnns.build(name),
        FAS(**options),
        probe={"x": tiny_cnns.images(1)},
        calibration=data() if calibrated else None,
    )


@every
def test_the_dense_network_stays(name):
    dense, model, x = tiny_cnns.build(name), converted(name, calibrated=False), tiny_cnns.images()
    model.network = "ann"
    # Batch normalisation is folded: float32 rounding of the weights.
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)
    assert isinstance(model, type(dense)) and type(model).__name__ == type(dense).__name__
    assert isinstance(model, ConvertedModule)


@every
@pytest.mark.parametrize("timesteps", [1, 5])
def test_collapsed_stepped_and_quantised_agree(name, timesteps):
    model, x = converted(name, timesteps=timesteps).double(), tiny_cnns.images(seed=5).double()
    answers = {}
    with torch.no_grad():
        for execution in ("collapsed", "stepped"):
            model.execution = execution
            with fas.record(model) as spikes:
                answers[execution] = model(x)
            answers[execution + " counts"] = torch.tensor([s.spikes for s in spikes.sites.values()])
        model.network = "quantised"
        answers["quantised"] = model(x)
    assert torch.equal(answers["collapsed counts"], answers["stepped counts"])
    for other in ("stepped", "quantised"):
        # Float64 sums in another order; counts are whole numbers.
        torch.testing.assert_close(answers[other], answers["collapsed"], rtol=0, atol=1e-9)


@every
def test_clipped_counts_are_exact_online_too(name):
    # The final count of a graded neuron does not depend on the order of its input, if operators are differences.
    model, x = converted(name, neuron="clipped_count").double(), tiny_cnns.images(seed=5).double()
    with torch.no_grad():
        layerwise = model(x)
        model.schedule = "online"
        torch.testing.assert_close(model(x), layerwise, rtol=0, atol=1e-9)  # float64
        assert model.logits_per_step(x=x).shape == (8, 4, 5)
        torch.testing.assert_close(model.logits_per_step(x=x)[-1], layerwise, rtol=0, atol=1e-9)


@every
def test_calibration_brings_the_answers_closer(name):
    dense, x = tiny_cnns.build(name), tiny_cnns.images(32, seed=9)
    errors = {}
    with torch.no_grad():
        want = dense(x)
        for label, options in {"maximum": {"coarse": False, "fine": False}, "calibrated": {}}.items():
            model = converted(name, calibrated=False, timesteps=2, **options)
            fas.calibrate(model, data(32))
            errors[label] = float((model(x) - want).norm())
    assert errors["calibrated"] < 0.9 * errors["maximum"]


def test_corrections_bring_mean_outputs_closer_where_nothing_is_padded():
    model, means = converted("vgg", timesteps=2), {}
    layers = spiking_layers(model)
    assert all(bool((layer.correction != 0).any()) for layer in layers.values())
    for name in ("ann", "corrected", "plain"):
        model.network = "ann" if name == "ann" else "snn"
        if name == "plain":
            for layer in layers.values():
                torch.nn.init.zeros_(layer.correction)
        seen = {path: [] for path in ("classifier.0", "classifier.3")}
        handles = [
            layers[path].register_forward_hook(lambda _, __, y, found=found: found.append(y))
            for path, found in seen.items()
        ]
        with torch.no_grad():
            for batch in data():
                model(**batch)
        for handle in handles:
            handle.remove()
        means[name] = {path: torch.cat(found).mean(0) for path, found in seen.items()}
    for path, mean in means["ann"].items():
        # Not all of it: what saturated values lose counts for half a level.
        assert float((means["corrected"][path] - mean).norm()) < 0.5 * float((means["plain"][path] - mean).norm())


@every
def test_saved_and_read_back(name, tmp_path):
    model, x = converted(name, timesteps=3), tiny_cnns.images()
    model.save_pretrained(tmp_path / "snn")
    again = load_module(tiny_cnns.build(name), tmp_path / "snn")
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert again.sites == model.sites and again.records == model.records and again.timesteps == 3
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("method", ["threshold_balancing", "qcfs_only", "fast_snn", "rate_norm"])
def test_other_methods_are_read_back(method, tmp_path):
    x = tiny_cnns.images()
    recipe = registry.load("methods", method)(timesteps=5, exclude=["classifier.3"])
    model = fas.convert(tiny_cnns.build("vgg"), recipe, probe={"x": x[:1]}, calibration=data())
    model.save_pretrained(tmp_path / "snn")
    again = load_module(tiny_cnns.build("vgg"), tmp_path / "snn")
    assert again.fas_config.recipe == recipe.with_options(levels=again.levels) and again.fas_config.method == method
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_half_precision():
    model, x = converted("resnet", neuron="signed_if").bfloat16(), tiny_cnns.images()
    for population in populations(model).values():
        population.float()
    with torch.no_grad():
        half = model(x.bfloat16())
        # Eight bits of mantissa through ten layers.
        torch.testing.assert_close(
            half.float(),
            converted("resnet", neuron="signed_if")(x),
            rtol=0.1,
            atol=0.1 * float(half.float().abs().max()),
        )
    assert half.dtype == torch.bfloat16


def test_damaged_and_foreign_directories(tmp_path):
    model = converted("vgg")
    model.save_pretrained(tmp_path / "snn")
    with pytest.raises(SiteError, match=r"ResNet has no features\.0 with features\.1 after it"):
        load_module(tiny_cnns.build("resnet"), tmp_path / "snn")
    with pytest.raises(TypeError, match=r"saved without options, got \['max_shard_size'\]"):
        model.save_pretrained(tmp_path / "other", max_shard_size="1GB")
    config = tmp_path / "snn" / "config.json"
    stored = json.loads(config.read_text())
    config.write_text(json.dumps({"architectures": ["VGG"]}))
    with pytest.raises(CheckpointError, match=r"is not a converted plain module: it needs a config\.json with"):
        load_module(tiny_cnns.build("vgg"), tmp_path / "snn")
    config.write_text(json.dumps(stored))
    weights = tmp_path / "snn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_module(tiny_cnns.build("vgg"), tmp_path / "snn")


@every
def test_there_and_back(name):
    model, x = converted(name), tiny_cnns.images()
    dense = tiny_cnns.build(name)
    fas.revert(model)
    assert type(model) is type(dense) and not hasattr(model, "config") and not populations(model)
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)  # folded weights in float32
    fas.convert(model, FAS(), probe={"x": x[:1]})


def test_conversion_refuses_what_it_cannot_do():
    with pytest.raises(SiteError, match=r"pass probe=\{\.\.\.\}, a batch of one by the names"):
        fas.convert(tiny_cnns.build("vgg"))
    model = converted("vgg")
    with pytest.raises(ValueError, match="converted already"):
        fas.convert(model, probe={"x": tiny_cnns.images(1)})
    with pytest.raises(ValueError, match="logits_per_step needs the spiking network in the online schedule"):
        model.logits_per_step(x=tiny_cnns.images())


def test_one_threshold_per_layer():
    model = converted("vgg", granularity="tensor")
    assert all(p.threshold.shape == () for p in populations(model).values())
