"""The method as its own configuration: sites, neurons, stages."""

import pytest
import torch
from tiny_models import FAMILIES, logits

import fas
from fas.errors import SiteError
from fas.methods.fas import FAS
from fas.neurons.clipped_count import ClippedCount
from fas.neurons.phase import Phase
from fas.neurons.signed_if import SignedIF
from fas.neurons.soft_reset_if import SoftResetIF
from fas.stages.calibrate import Calibrate
from fas.stages.set_thresholds import SetThresholds
from fas.types import Site

SIGNED, POSITIVE = Site("a", "mlp", 3), Site("b", "mlp", 3, signed=False)


@pytest.mark.parametrize(
    ("neuron", "cls"), [("signed_if", SignedIF), ("clipped_count", ClippedCount), ("phase", Phase)]
)
def test_neurons_have_a_sign_where_the_site_needs_one(neuron, cls):
    method = FAS(neuron=neuron)
    assert method.build(SIGNED) == cls(signed=True) and method.build(POSITIVE) == cls(signed=False)


def test_binary_spikes_need_non_negative_sites():
    method = FAS(neuron="soft_reset_if")
    assert method.build(POSITIVE) == SoftResetIF()
    with pytest.raises(SiteError, match=r"a receives values of both signs.*neuron='signed_if', or coverage='mlp' with"):
        method.build(SIGNED)


@pytest.mark.parametrize(
    ("name", "options"), [("opt", {}), ("t5", {}), ("gpt2", {"replace_activation": True})], ids=lambda x: str(x)
)
def test_the_papers_network(name, options):
    family = FAMILIES[name]
    method = FAS(coverage="mlp", neuron="soft_reset_if", timesteps=6, **options)
    model = fas.convert(family.build(), method, calibration=[family.batch()])
    assert all(not site.signed and site.activation for site in model.sites)
    answer = logits(model, family.batch())
    assert torch.equal(logits(model, family.batch(), network="quantised"), answer)
    assert bool(logits(model, family.batch(), schedule="online").isfinite().all())


def test_it_refuses_before_the_model_is_changed():
    with pytest.raises(SiteError, match=r"transformer\.h\.0\.attn\.c_attn receives values of both signs"):
        FAS(neuron="soft_reset_if", coverage="linear").select(FAMILIES["gpt2"].build())


@pytest.mark.parametrize(
    ("options", "stage"),
    [
        ({}, Calibrate()),
        ({"spikes": 1.5}, Calibrate(spikes=1.5)),
        ({"coarse": False}, Calibrate(coarse=False)),
        ({"neuron": "signed_if", "fine": False}, Calibrate(fine=False)),
        ({"spike_price": 0.1, "centred": False}, Calibrate(centred=False, spike_price=0.1)),
        ({"coarse": False, "fine": False}, SetThresholds(rule="maximum")),
    ],
)
def test_stages(options, stage):
    assert FAS(**options).stages() == (stage,)


def test_options_make_another_method():
    method = FAS(timesteps=3, exclude=["x"])
    assert method.exclude == ("x",)
    assert method.with_options(timesteps=4, levels=7) == FAS(timesteps=4, levels=7, exclude=("x",))
    with pytest.raises(ValueError, match="timesteps is 0"):
        method.with_options(timesteps=0)
    with pytest.raises(TypeError, match="unexpected"):
        method.with_options(steps=1)


def test_a_single_pattern_is_no_list_of_letters():
    # A string is a sequence too; "lm_head" taken apart excludes nothing and says nothing.
    with pytest.raises((TypeError, ValueError), match="exclude"):
        FAS(exclude="lm_head")


def test_methods_are_values():
    assert FAS() == FAS() and hash(FAS(exclude=["a"])) == hash(FAS(exclude=("a",)))
    with pytest.raises(AttributeError, match="cannot assign"):
        FAS().timesteps = 3
