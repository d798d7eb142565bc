"""Optimal ANN-SNN conversion against its equations written down plainly."""

import math

import pytest
import tiny_cnns
import tiny_models
import torch
from benchmarks.by_step import fit_curve
from made import converted_chain
from torch.nn import functional

import fas
from fas.errors import CalibrationError, DataError, SiteError
from fas.methods.rate_norm import RateNorm
from fas.stages import rate_norm as stage
from fas.stages.rate_norm import FitRates
from fas.stages.train_rates import TrainRates
from fas.surgery.replace import populations
from fas.training.rates import omega, rates


def converted(batches, **options):
    return converted_chain(RateNorm(**{"timesteps": 8, **options}), batches)


def data(count=2):
    return [{"x": tiny_cnns.images(4, size=10, seed=seed).double()} for seed in range(count)]


def rate_network(layers, x, thresholds):
    """r = clip(ReLU(x)/θ, 0, 1) in every layer, passed on as θ r."""
    rates, value = [], layers[0](x)
    for layer, threshold in zip(layers[1:], thresholds, strict=True):
        rates.append((value.relu() / threshold).clamp(0, 1))
        value = layer(threshold * rates[-1])
    return rates, value


def test_running_maximum_and_start():
    batches = data(3)
    model = converted(batches, fit_epochs=0, scale=4.0)
    layers, share = tiny_cnns.layers_of(model), 1 / (1 + math.exp(-4.0))
    maxima = [None] * 3
    with torch.no_grad():
        for batch in batches:
            value = layers[0](batch["x"])
            for i, layer in enumerate(layers[1:]):
                top = value.relu().max()
                maxima[i] = top if maxima[i] is None else 0.9 * maxima[i] + 0.1 * top
                value = layer(value.clamp(min=0).minimum(maxima[i] * share))
    for population, top in zip(populations(model).values(), maxima, strict=True):
        # Maxima and ln θ in float32.
        torch.testing.assert_close(population.threshold.double(), top * share, rtol=1e-5, atol=0)
        assert population.v_init.item() == 0 and population.offset.item() == 0


@pytest.mark.parametrize("shared", [False, True])
def test_stage_two_is_descent_on_the_rate_inference_loss(shared):
    (batch,), weight, rate, steps = data(1), 0.3, 0.7, 4
    start = converted([batch], fit_epochs=0, scale=4.0)
    maxima = [p.threshold.detach().double() / torch.tensor(4.0).double().sigmoid() for p in populations(start).values()]
    layers, x = tiny_cnns.layers_of(start), batch["x"]
    scales = [torch.tensor(4.0, dtype=torch.float64, requires_grad=True) for _ in range(1 if shared else 3)]
    optimizer = torch.optim.SGD(scales, rate, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.no_grad():
        _, target = rate_network(layers, x, [top * torch.tensor(4.0).double().sigmoid() for top in maxima])
    for _ in range(steps):
        thresholds = [top * scales[0 if shared else i].sigmoid() for i, top in enumerate(maxima)]
        rates, made = rate_network(layers, x, thresholds)
        terms = [r.sum() / r.norm(2) ** 2 for r in rates]
        loss = 1 - functional.cosine_similarity(made, target, dim=1).mean() + weight * sum(terms) / 3
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model = converted([batch], fit_epochs=steps, scale=4.0, omega_weight=weight, fit_rate=rate, shared=shared)
    record = model.records[-1]
    for i, (path, top) in enumerate(zip(record.sites, maxima, strict=True)):
        wanted = scales[0 if shared else i].detach()
        assert abs(float(wanted) - 4.0) > 1e-3
        # Scales and maxima are float32 there, and Ω has 1e-5 in its denominator.
        assert record.sites[path]["scale"] == pytest.approx(float(wanted), abs=2e-4)
        threshold = populations(model)[path].threshold
        torch.testing.assert_close(threshold.double(), top * wanted.sigmoid(), rtol=1e-4, atol=0)
    assert record.results["loss_last"] == pytest.approx(float(loss.detach()), rel=1e-4)


def test_the_stage_alone_fits_as_the_method_does():
    # Two places have the same defaults.
    assert list(RateNorm().stages()) == [FitRates()]


def test_omega_is_a_mean_over_batches():
    one, twice = (converted(data(1) * n, fit_epochs=0).records[-1].sites for n in (1, 2))
    assert all(site["omega"] > 0 and twice[path]["omega"] == pytest.approx(site["omega"]) for path, site in one.items())


def test_a_smaller_omega_makes_rates_converge_faster():
    batches = data(2)
    slow, fast = (converted(batches, fit_epochs=epochs, fit_rate=1.0, omega_weight=1.0) for epochs in (0, 30))
    sums = [sum(site["omega"] for site in m.records[-1].sites.values()) for m in (slow, fast)]
    curves = [fit_curve(m, batches) for m in (slow, fast)]
    assert sums[1] < 0.8 * sums[0]
    assert all(curves[1][path][-1] < curves[0][path][-1] for path in curves[0])


@pytest.mark.parametrize("operators", ["difference", "instant"])
def test_the_fit_curve_by_its_definition(operators):
    batches = data(2)
    model = converted(batches, operators=operators)
    thresholds = [p.threshold.detach().double() for p in populations(model).values()]
    layers = tiny_cnns.layers_of(model)
    distance, power = torch.zeros(3, 8, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for batch in batches:
            rates, _ = rate_network(layers, batch["x"], thresholds)
            trains, _ = tiny_cnns.simulate(layers, batch["x"], thresholds, 8, 0.0)
            for i, (rate, train) in enumerate(zip(rates, trains, strict=True)):
                for t in range(1, 9):
                    distance[i, t - 1] += (train[:t].mean(0) - rate).norm() ** 2
                power[i] += rate.norm() ** 2
    curve = fit_curve(model, batches)
    found = torch.tensor(list(curve.values()), dtype=torch.float64)
    torch.testing.assert_close(found, distance / power.view(-1, 1), rtol=1e-5, atol=0)  # θ in float32


def test_the_fit_curve_is_that_of_the_rates_whatever_the_backend():
    # So many rows that the fast backend has the first linear layer read spikes instead of their mean.
    batches, curves = [{"x": tiny_cnns.images(96)}], {}
    for kernels in ("auto", "torch"):
        model = fas.convert(
            tiny_cnns.build("vgg"), RateNorm(timesteps=4), probe={"x": batches[0]["x"][:1]}, calibration=batches
        )
        model.kernels = kernels
        curves[kernels] = fit_curve(model, batches)
    assert curves["auto"] == curves["torch"]


def test_behind_even_input_the_curve_lies_below_omega_over_t():
    # |r̂ − r| < 1/t and 0 ≤ r − r̂ ≤ r there, hence Σ(r̂ − r)² ≤ Σ r/t.
    (batch,) = data(1)
    model = converted([batch], timesteps=32)
    first = model.sites[0].path
    bound = model.records[-1].sites[first]["omega"]
    for t, value in enumerate(fit_curve(model, [batch])[first], start=1):
        assert value <= bound / t + 1e-4  # 1e-5 in the denominator of Ω, float32


def test_stage_one_trains_the_weights_of_the_network_of_rates():
    batches = [{**batch, "labels": torch.arange(4) % 5} for batch in data(3)]
    model = converted([{"x": batch["x"]} for batch in batches])
    before = {path: value.clone() for path, value in model.state_dict().items()}
    record = TrainRates(epochs=15, learning_rate=0.02).run(model, batches)
    assert record.results["loss_last"] < 0.7 * record.results["loss_first"]
    after = model.state_dict()
    changed = {path for path in before if not torch.equal(before[path], after[path])}
    assert {"features.0.weight", "head.bias", "head.neuron.log_threshold"} <= changed
    assert not any(path.endswith("correction") for path in changed)
    with torch.no_grad():
        model.schedule, model.timesteps = "layerwise", 1000
        _, made = rate_network(
            tiny_cnns.layers_of(model), batches[0]["x"], [p.threshold.double() for p in populations(model).values()]
        )
        # After many steps the spiking network is the network of rates: 1/1000 of a threshold per neuron.
        torch.testing.assert_close(model(batches[0]["x"]), made, rtol=0, atol=0.02 * float(made.abs().max()))


def test_stage_one_leaves_thresholds_at_the_share_of_the_running_maximum():
    batch, share = {**data(1)[0], "labels": torch.arange(4) % 5}, 1 / (1 + math.exp(-0.5))
    model = converted([{"x": batch["x"]}])
    # At this rate nothing is learned, and one batch is the whole running maximum.
    TrainRates(scale=0.5, learning_rate=1e-12).run(model, [batch])
    layers, value = tiny_cnns.layers_of(model), batch["x"]
    with torch.no_grad():
        for layer, population in zip(layers[:-1], populations(model).values(), strict=True):
            value = layer(value).relu()
            threshold = share * value.max()
            torch.testing.assert_close(population.threshold.double(), threshold, rtol=1e-5, atol=0)  # ln θ in float32
            value = value.minimum(threshold)


def test_weights_are_trained_at_thresholds_that_stay():
    (batch,), rate, steps = [{**data(1)[0], "labels": torch.arange(4) % 5}], 0.05, 4
    model = converted([{"x": batch["x"]}], scale=0.0)
    thresholds = [p.threshold.detach().double() for p in populations(model).values()]
    layers = [model.features[0], model.features[3], model.features[6], model.head]
    own = [t.detach().clone().requires_grad_() for layer in layers for t in (layer.weight, layer.bias)]
    optimizer = torch.optim.SGD(own, rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        value = batch["x"]
        for i, (stride, padding) in enumerate(((1, 1), (2, 1), (2, 0))):
            value = functional.conv2d(value, own[2 * i], own[2 * i + 1], stride, padding)
            value = value.relu().minimum(thresholds[i])
        loss = functional.cross_entropy(functional.linear(value.flatten(1), own[6], own[7]), batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    record = TrainRates(scale=None, epochs=steps, learning_rate=rate).run(model, [batch])
    # Doubles but for ln θ, whose threshold is read in float32.
    assert record.results["loss_last"] == pytest.approx(float(loss.detach()), rel=1e-5)
    made = [t.detach() for layer in layers for t in (layer.weight, layer.bias)]
    for found, wanted in zip(made, own, strict=True):
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-7)
    kept = [p.threshold.detach().double() for p in populations(model).values()]
    assert all(torch.equal(a, b) for a, b in zip(kept, thresholds, strict=True))


def test_the_network_of_rates_has_no_gelu_where_neurons_replace_it():
    model = tiny_models.FAMILIES["gpt2"].build()
    inputs = tiny_models.FAMILIES["gpt2"].batch()
    fas.convert(model, RateNorm(coverage="mlp", replace_activation=True, fit_epochs=0), calibration=[inputs])
    seen = {}
    for population in populations(model).values():
        population.register_forward_pre_hook(lambda module, given: seen.update({module: given[0]}))
    with torch.no_grad(), rates(model, lambda population: population.threshold) as found:
        model(**inputs)
    assert found
    for population, rate in found.items():
        assert torch.equal(rate, (seen[population] / population.threshold).clamp(0, 1))


def test_the_initial_potential_is_an_option():
    batches = data(1)
    half, rest = converted(batches, potential=0.5), converted(batches)
    for a, b in zip(populations(half).values(), populations(rest).values(), strict=True):
        assert float(a.v_init.detach()) == 0.5 and float(b.v_init.detach()) == 0
        assert torch.equal(a.threshold, b.threshold)
    with pytest.raises(ValueError, match="share is 1"):
        RateNorm(potential=1.0)


def test_omega():
    assert float(omega(torch.ones(7))) == pytest.approx(1, abs=1e-4)
    assert float(omega(torch.tensor([0.5, 0.0, 0.25]))) == pytest.approx(0.75 / (0.25 + 0.0625), abs=1e-3)


def test_what_it_refuses():
    batches = data(1)
    with pytest.raises(SiteError, match="receives values of both signs"):
        RateNorm(encode_image=True).select(tiny_cnns.chain(), batches[0])
    with pytest.raises(CalibrationError, match="no calibration data"):
        FitRates().run(converted(batches), [])
    with pytest.raises(DataError, match=r"has \['x'\] but no 'labels'"):
        TrainRates().run(converted(batches), batches)
    with pytest.raises(ValueError, match="momentum 0: expected"):
        FitRates(momentum=0)
    silent = tiny_cnns.chain()
    silent.features[3].bias.data.fill_(-1e3)
    silent.features[4].bias.data.fill_(-1e3)
    with pytest.raises(CalibrationError, match=r"site features\.6 is never above zero"):
        fas.convert(silent, RateNorm(), probe=batches[0], calibration=batches)
    layerwise = converted(batches, schedule="layerwise")
    with pytest.raises(ValueError, match=r"set model\.schedule = 'online', not 'layerwise'"):
        fit_curve(layerwise, batches)


def test_stage_two_compares_with_the_network_of_its_start(monkeypatch):
    seen = []
    loss = stage.rate_inference_loss

    def recorded(made, target, *rest):
        seen.append((made.detach(), target))
        return loss(made, target, *rest)

    monkeypatch.setattr(stage, "rate_inference_loss", recorded)
    converted(data(1), fit_epochs=6, fit_rate=1.0, omega_weight=1.0)
    assert len(seen) == 6 and torch.equal(*seen[0])
    assert all(torch.equal(target, seen[0][1]) and not torch.equal(made, target) for made, target in seen[1:])
