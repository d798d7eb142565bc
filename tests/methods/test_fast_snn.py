"""Fast-SNN against a plain statement of the paper: signed IF neurons, T = 2^b − 1, layer-wise fine-tuning."""

import copy

import pytest
import tiny_cnns
import torch
from made import converted_chain
from torch.nn import functional

import fas
from fas.errors import CalibrationError
from fas.methods.fast_snn import FastSNN
from fas.stages.fast_snn import TuneLayers
from fas.stages.set_thresholds import SetThresholds
from fas.surgery.replace import populations


def converted(x, **options):
    return converted_chain(FastSNN(**{"bits": 2, "tune_epochs": 0, **options}), [{"x": x}]).double()


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("operators", ["difference", "instant"])
def test_every_spike_is_that_of_the_plain_network(bits, operators):
    x = tiny_cnns.images(4, size=10).double()
    model = converted(x, bits=bits, operators=operators)
    thresholds = [p.threshold.detach() for p in populations(model).values()]
    with torch.no_grad():
        trains, answers = tiny_cnns.simulate(
            tiny_cnns.layers_of(model), x, thresholds, 2**bits - 1, 0.5, take_back=True
        )
        with fas.record(model) as spikes:
            per_step = model.logits_per_step(x=x)
    torch.testing.assert_close(per_step, answers, rtol=0, atol=1e-9)  # float64: the same spikes, another order
    assert [s.spikes for s in spikes.sites.values()] == [float(train.abs().sum()) for train in trains]
    assert bits == 1 or any(bool((train < 0).any()) for train in trains)


@pytest.mark.parametrize("epochs", [1, 3])
def test_tuning_is_gradient_descent_on_the_quantised_layer_at_the_spikes(epochs):
    # Written down for the chain: layer l of the quantised network on the spiking predecessor's mean, its value
    # replaced by what the spiking layer really sends, against the untouched quantised network.
    x, levels = tiny_cnns.images(4, size=10).double(), 3
    model = converted(x)
    reference = copy.deepcopy(model)
    thresholds = [p.threshold.detach() for p in populations(model).values()]
    stage = TuneLayers(epochs=epochs, learning_rate=0.02, force=True)
    record = stage.run(model, [{"x": x}])

    def quantised(v, threshold):
        return threshold / levels * (v * levels / threshold + 0.5).floor().clamp(0, levels)

    with torch.no_grad():
        targets, value = [], x
        for layer, threshold in zip(tiny_cnns.layers_of(reference)[:-1], thresholds, strict=True):
            value = quantised(layer(value), threshold)
            targets.append(value)
    for i, path in ((1, "features.3"), (2, "features.6")):
        module = reference.get_submodule(path)
        options = {"stride": 2, "padding": 1 if i == 1 else 0}
        optimizer = torch.optim.SGD([module.weight, module.bias], 0.02, momentum=0.9, weight_decay=5e-4)
        for _ in range(epochs):
            with torch.no_grad():
                trains, _ = tiny_cnns.simulate(tiny_cnns.layers_of(reference), x, thresholds, levels, 0.5, True)
            sent = [train.mean(0) * threshold for train, threshold in zip(trains, thresholds, strict=True)]
            current = functional.conv2d(sent[i - 1], module.weight, module.bias, **options)
            # ∂q/∂current is 1 where the floor is within 0 and L.
            inside = (current * levels / thresholds[i] + 0.5).floor()
            passes = ((inside >= 0) & (inside <= levels)).double()
            gradient = 2 * (sent[i] - targets[i]) / sent[i].numel() * passes
            optimizer.zero_grad()
            current.backward(gradient)
            optimizer.step()
        tuned = model.get_submodule(path)
        assert not torch.equal(tuned.weight, tiny_cnns.chain().get_submodule(path).weight)
        # Float64, the same steps.
        torch.testing.assert_close(tuned.weight, module.weight, rtol=0, atol=1e-10)
        torch.testing.assert_close(tuned.bias, module.bias, rtol=0, atol=1e-10)
    # The first layer reads a constant current, so that its neurons are exact already.
    assert record.sites["features.3"] == {"error_before": 0.0, "error_after": 0.0, "parameters": 0.0}
    for path, before in (("features.0", reference.get_submodule("features.0").weight), ("head", reference.head.weight)):
        assert torch.equal(model.get_submodule(path).weight, before)


def test_tuning_keeps_what_is_better():
    x = tiny_cnns.images(8, size=10).double()
    model = converted(x)
    record = TuneLayers(epochs=8, learning_rate=0.05, weight_decay=0.0).run(model, [{"x": x}])
    errors = [(site["error_before"], site["error_after"]) for site in record.sites.values()]
    assert all(after <= before for before, after in errors) and any(after < before for before, after in errors)
    wild = TuneLayers(learning_rate=1e3).run(worse := converted(x), [{"x": x}])
    assert all(site["error_after"] == site["error_before"] for site in wild.sites.values())
    assert torch.equal(worse.get_submodule("features.6").weight, converted(x).get_submodule("features.6").weight)


@pytest.mark.parametrize("name", ["vgg", "resnet", "functional"])
def test_tuning_other_networks(name):
    x = tiny_cnns.images(8)
    model = fas.convert(
        tiny_cnns.build(name), FastSNN(bits=2, tune_epochs=2), probe={"x": x[:1]}, calibration=[{"x": x}]
    )
    record = model.records[-1]
    assert record.stage == "fast_snn" and list(record.sites) == [site.path for site in model.sites]
    assert sum(site["parameters"] for site in record.sites.values()) > 0
    assert all(site["error_after"] <= site["error_before"] for site in record.sites.values())
    assert not any(population.training for population in populations(model).values())


def test_errors_are_of_what_the_spikes_mean_whatever_the_backend():
    # So many rows that the fast backend has the first linear layer read spikes instead of their mean.
    x, errors = tiny_cnns.images(96), {}
    for kernels in ("auto", "torch"):
        model = fas.convert(
            tiny_cnns.build("vgg"), FastSNN(bits=2, tune_epochs=0), probe={"x": x[:1]}, calibration=[{"x": x}]
        )
        model.kernels = kernels
        record = TuneLayers(epochs=0).run(model, [{"x": x}])
        errors[kernels] = {path: site["error_before"] for path, site in record.sites.items()}
        assert model.kernels == kernels
    assert errors["auto"] == errors["torch"]


def test_layerwise_there_is_nothing_to_tune():
    x = tiny_cnns.images(4, size=10).double()
    record = TuneLayers().run(converted(x, schedule="layerwise"), [{"x": x}])
    assert all(site["error_before"] == 0 for site in record.sites.values())


def test_steps_and_levels_come_from_the_bits():
    assert [(FastSNN(bits=b).timesteps, FastSNN(bits=b).levels) for b in (1, 2, 4)] == [(1, 1), (3, 3), (15, 15)]
    assert FastSNN(bits=2, timesteps=8).timesteps == 8
    assert FastSNN(bits=2).with_options(timesteps=8).levels == 3
    assert FastSNN(tune_epochs=2).stages() == (SetThresholds(rule="error"), TuneLayers(epochs=2))
    assert FastSNN(tune_epochs=0).tuning() == ()


@pytest.mark.parametrize("bits", [0, 9, 2.0, True])
def test_impossible_bits(bits):
    with pytest.raises(ValueError, match=f"bits is {bits}; expected a whole number from 1 to 8"):
        FastSNN(bits=bits)


def test_no_data():
    with pytest.raises(CalibrationError, match="no calibration data"):
        TuneLayers().run(converted(tiny_cnns.images(2, size=10).double()), [])
    with pytest.raises(ValueError, match="learning_rate 0"):
        TuneLayers(learning_rate=0)
