"""What a report measures, against loops and runs of one's own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_models import FAMILIES, logits

import fas
from fas.energy.bill import Hardware
from fas.energy.estimate import Estimate, count_both, levels_of
from fas.energy.prices import load_prices
from fas.reporting import measure
from fas.surgery.replace import populations

from .tiny_findings import MARGINS, converted, loss


def parameters(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("schedule", ["layerwise", "online"])
def test_output_errors_by_hand(schedule):
    model, batch = converted(schedule=schedule), FAMILIES["gpt2"].batch()
    errors = measure.output_errors(model, batch)
    assert set(errors) == {path for site in model.sites for path in site.layers}
    dense, spiking = (logits(model, batch, network=network).double() for network in ("ann", "snn"))
    dense, spiking = dense.flatten(0, 1), spiking.flatten(0, 1)
    expected = ((spiking - dense) ** 2).sum() / ((dense - dense.mean(0)) ** 2).sum()
    # The head's output is the model's.
    assert errors["lm_head"] == pytest.approx(float(expected), rel=1e-9)
    assert errors["lm_head"] > 0


def test_agreement():
    model, batch = converted(timesteps=2), FAMILIES["gpt2"].batch()
    answers = [logits(model, batch, network=network).argmax(-1) for network in ("ann", "snn")]
    assert measure.agreement(model, batch) == float((answers[0] == answers[1]).double().mean())


def test_coarse_thresholds_are_those_of_coarse_calibration_and_nothing_changes():
    model, family = converted(), FAMILIES["gpt2"]
    before = parameters(model)
    found = measure.coarse_thresholds(model, [family.batch(seed=3)])
    assert same(before, parameters(model))
    method = fas.FAS(timesteps=4, neuron="signed_if", fine=False)
    fresh = fas.convert(family.build(), method, calibration=[family.batch(seed=3)])
    expected = {path: float(p.threshold.detach().mean()) for path, p in populations(fresh).items()}
    # Means of equal numbers.
    assert found == pytest.approx(expected, rel=1e-6)


def test_rasters_are_the_recorded_spikes():
    model, batch = converted(), FAMILIES["gpt2"].batch()
    found = measure.rasters(model, batch, neurons=1000, positions=4)
    assert [raster.path for raster in found] == [model.sites[i].path for i in (0, 4, 8)]
    with torch.no_grad(), fas.record(model, trains=True) as spikes:
        model(**{name: value[:1] for name, value in batch.items()})
    for raster in found:
        train = spikes.sites[raster.path].trains[0][:, 0]
        assert raster.spikes.shape == (4 * 4, raster.neurons) and raster.timesteps == 4
        for position in range(4):
            for step in range(4):
                assert torch.equal(raster.spikes[position * 4 + step], train[step, position])
    assert measure.rasters(model, batch, neurons=5)[0].spikes.shape[1] == 5


def test_sites():
    model, batch = converted(coverage="mlp"), FAMILIES["gpt2"].batch()
    before = parameters(model)
    found = measure.site_findings(model, [batch], measure.coarse_thresholds(model, [batch]))
    assert same(before, parameters(model)) and [f.path for f in found] == [s.path for s in model.sites]
    with torch.no_grad(), fas.record(model) as spikes:
        model(**batch)
    for entry in found:
        assert entry.spikes_per_neuron == spikes.sites[entry.path].spikes_per_neuron
        population = populations(model)[entry.path]
        assert torch.equal(entry.threshold, population.threshold.detach()) and entry.threshold.shape == (48,)
        assert torch.equal(entry.v_init, population.v_init.detach())
        # One division in float32.
        torch.testing.assert_close(entry.offset * population.threshold, population.offset, rtol=1e-6, atol=1e-12)
        assert entry.coarse and entry.error and entry.code_error == model.records[0].sites[entry.path]["relative_error"]
    with torch.no_grad():
        populations(model)[found[0].path].v_init.fill_(0.25)
    assert not bool((found[0].v_init == 0.25).any())  # what was found does not follow the model
    assert all(entry.coarse is None for entry in measure.site_findings(model, [batch]))


def test_early_exits_against_a_loop():
    model, batch = converted(coverage="mlp"), FAMILIES["gpt2"].batch()
    found = measure.early_exits(model, batch, MARGINS)
    model.schedule = "online"
    with torch.no_grad():
        steps = model.logits_per_step(**{name: value[:1] for name, value in batch.items()})[:, 0]
    model.schedule = "layerwise"
    for exit_ in found:
        taken, equal = [], []
        for position in range(9):
            for t in range(4):
                first, second = steps[t, position].sort(descending=True).values[:2]
                if first - second >= exit_.margin or t == 3:
                    break
            taken.append(t + 1)
            equal.append(int(steps[t, position].argmax()) == int(steps[3, position].argmax()))
        assert exit_.mean_steps == sum(taken) / 9 and exit_.same == sum(equal) / 9
    assert found[0].mean_steps == 1 and model.schedule == "layerwise"
    assert measure.early_exits(converted(coverage="mlp", neuron="phase"), batch, MARGINS) == []


def test_quality_over_time():
    model, batch = converted(coverage="mlp"), FAMILIES["gpt2"].batch()
    estimate = Estimate(*count_both(model, [batch]), levels_of(model), Hardware(load_prices("45nm")))
    found = measure.quality_over_time(model, lambda: loss(model, batch), [2, 4], [batch], estimate)
    assert [(q.network, q.timesteps) for q in found] == [
        ("ann", 0), ("quantised", 2), ("snn", 2), ("quantised", 4), ("snn", 4),
    ]  # fmt: skip
    by = {(q.network, q.timesteps): q for q in found}
    assert by["snn", 4].value == loss(model, batch)
    # The collapsed spiking network is its quantised twin; float32 sums in another order.
    for steps in (2, 4):
        assert by["snn", steps].value == pytest.approx(by["quantised", steps].value, rel=1e-5)
    assert by["snn", 4].energy == pytest.approx(estimate.energy("prefill", "compute", "snn"))
    assert by["ann", 0].energy == estimate.energy("prefill", "compute", "ann")
    assert by["snn", 2].spikes < by["snn", 4].spikes
    assert (model.timesteps, model.levels, model.network) == (4, 4, "snn")
    fields = {field.name for field in dataclasses.fields(found[0])}
    assert fields == {"network", "timesteps", "value", "spikes", "energy"}
