"""Threshold balancing against a plain statement of it: IF neurons with soft reset, thresholds by maximum."""

import pytest
import tiny_cnns
import torch
from made import converted_chain

import fas
from fas.errors import SiteError
from fas.methods.threshold_balancing import ThresholdBalancing
from fas.neurons.soft_reset_if import SoftResetIF
from fas.stages.set_potential import SetPotential
from fas.stages.set_thresholds import SetThresholds
from fas.surgery.replace import populations
from fas.types import Site


def converted(batches, **options):
    return converted_chain(ThresholdBalancing(timesteps=6, **options), batches)


@pytest.mark.parametrize("potential", [0.0, 0.5])
@pytest.mark.parametrize("operators", ["difference", "instant"])
def test_every_spike_is_that_of_the_plain_network(potential, operators):
    x = tiny_cnns.images(4, size=10).double()
    model = converted([{"x": x}], potential=potential, operators=operators)
    layers = tiny_cnns.layers_of(model)
    with torch.no_grad():
        activations, value = [], x
        for layer in layers[:-1]:
            value = layer(value).relu()
            activations.append(value)
        thresholds = [p.threshold.double() for p in populations(model).values()]
        for threshold, activation in zip(thresholds, activations, strict=True):
            # Float32 parameters hold ln θ: two roundings.
            torch.testing.assert_close(threshold, activation.max(), rtol=1e-6, atol=0)
        trains, answers = tiny_cnns.simulate(layers, x, thresholds, 6, potential)
        with fas.record(model, trains=True) as spikes:
            per_step = model.logits_per_step(x=x)
    for site, train in zip(spikes.sites.values(), trains, strict=True):
        ours = site.trains[0]
        theirs = train.movedim(2, -1) if ours.ndim == 5 else train.flatten(2)
        assert torch.equal(ours.double(), theirs)
    # Float64: the same spikes, sums in another order.
    torch.testing.assert_close(per_step, answers, rtol=0, atol=1e-9)


def test_rules():
    batches = [{"x": tiny_cnns.images(8, seed=seed).double()} for seed in (1, 2)]
    by_maximum, by_percentile = (
        [p.threshold.item() for p in populations(converted(batches, **options)).values()]
        for options in ({}, {"rule": "percentile", "percentile": 99.0})
    )
    assert all(low < high for low, high in zip(by_percentile, by_maximum, strict=True))
    per_channel = converted(batches, granularity="channel")
    assert [p.threshold.shape for p in populations(per_channel).values()] == [(6,), (7,), (20,)]


def test_the_image_is_a_constant_current_unless_asked_otherwise():
    probe = {"x": tiny_cnns.images(1).double()}
    assert [s.path for s in ThresholdBalancing().select(tiny_cnns.chain(), probe)] == [
        "features.3",
        "features.6",
        "head",
    ]
    with pytest.raises(SiteError, match=r"features\.0 receives values of both signs, which soft_reset_if cannot carry"):
        ThresholdBalancing(encode_image=True).select(tiny_cnns.chain(), probe)


def test_stages_and_fields():
    assert ThresholdBalancing().stages() == (SetThresholds(rule="maximum"), SetPotential(0.0))
    method = ThresholdBalancing(rule="percentile", percentile=99, potential=0.5)
    assert method.stages() == (SetThresholds(rule="percentile", percentile=99), SetPotential(0.5))
    assert method.build(Site("a", "conv_input", 3, signed=False)) == SoftResetIF()
    assert method.with_options(timesteps=3).timesteps == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": 0}, "timesteps is 0"),
        ({"rule": "mean"}, "rule is 'mean'; choose one of maximum, percentile"),
        ({"percentile": 0}, "percentile is 0"),
        ({"potential": 1.0}, r"share is 1\.0; an initial potential is at least 0 and below the threshold"),
        ({"schedule": "sometimes"}, "schedule is 'sometimes'; choose one of layerwise, online"),
        ({"coverage": "full"}, "coverage is 'full', but ThresholdBalancing is a method for layers"),
        ({"exclude": "head"}, "exclude is the string 'head'"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        ThresholdBalancing(**options)


def test_a_transformer_with_relu():
    from tiny_models import FAMILIES, logits

    family = FAMILIES["opt"]
    model = fas.convert(family.build(), ThresholdBalancing(coverage="mlp"), calibration=[family.batch()])
    assert bool(logits(model, family.batch()).isfinite().all())
