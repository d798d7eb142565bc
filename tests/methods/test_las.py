"""LAS as a method: its defaults, its network beside the dense one, files and executions."""

import functools

import made
import pytest
import torch
import transformers
from tiny_models import FAMILIES, logits, spike_counts

import fas
from fas.layers.gated_operators import GatedActivation, GatedNorm
from fas.methods.las import LAS
from fas.neurons.outlier_aware import OutlierAware
from fas.stages.calibrate import Calibrate
from fas.stages.rotate import Rotate
from fas.stages.set_thresholds import SetThresholds
from fas.types import Site

NAMES = ["gpt2", "gemma3", "bart", "vit"]


converted = functools.partial(made.converted, method=LAS, timesteps=LAS().timesteps, seeds=(1, 2))


def test_defaults():
    method = LAS()
    assert (method.timesteps, method.coverage, method.schedule) == (16, "full", "layerwise")
    assert method.build(Site("a", "mlp", 3)) == OutlierAware(signed=True)
    assert method.build(Site("a", "attention_weight", 3, signed=False)) == OutlierAware(signed=False)
    assert method.stages() == (Calibrate(centred=False),)
    assert LAS(rotate=True, coarse=False, fine=False).stages() == (Rotate(), SetThresholds(rule="maximum"))
    assert LAS(neuron="phase").stages() == (Calibrate(centred=False),)
    with pytest.raises(ValueError, match="neuron 'outlier_aware' fires after its whole input"):
        LAS(schedule="online")


@pytest.mark.parametrize("name", NAMES)
def test_sixteen_steps_lose_nothing(name):
    family = FAMILIES[name]
    model, inputs = converted(name), family.batch()
    dense = logits(model, inputs, network="ann")
    found = logits(model, inputs)
    # Operators are wrong by some 1e-5 each, codes by less, through two blocks of large random weights.
    assert 0 < float((found - dense).norm() / dense.norm()) < 0.01


@pytest.mark.parametrize("name", NAMES)
def test_every_digit_sent_is_the_count(name):
    family = FAMILIES[name]
    model, inputs = converted(name, timesteps=3).double(), family.batch()
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    collapsed, stepped = (spike_counts(model, inputs, execution=e) for e in ("collapsed", "stepped"))
    assert list(collapsed) == [site.path for site in model.sites] == list(stepped)
    for path, calls in collapsed.items():
        for one, other in zip(calls, stepped[path], strict=True):
            assert torch.equal(one, other)
    answer = logits(model, inputs)
    # Float64 sums of three steps; some norms and positions of transformers compute in float32.
    torch.testing.assert_close(logits(model, inputs, execution="stepped"), answer, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_files_and_back(name, tmp_path):
    family, inputs = FAMILIES[name], FAMILIES[name].batch()
    model = family.build()
    with torch.no_grad():
        before = model(**inputs).logits
    fas.convert(model, LAS(timesteps=4), calibration=[inputs])
    answer = logits(model, inputs)
    model.save_pretrained(tmp_path / "snn")
    loaded = getattr(transformers, family.auto).from_pretrained(tmp_path / "snn")
    assert loaded.fas_config.method == "las" and loaded.fas_config.recipe == LAS(timesteps=4, levels=240)
    assert torch.equal(logits(loaded, inputs), answer)
    kinds = [sum(isinstance(m, kind) for m in loaded.modules()) for kind in (GatedNorm, GatedActivation)]
    assert kinds == [5, 2]
    fas.revert(model)
    assert not any(isinstance(module, GatedNorm | GatedActivation) for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, before)


def test_operators_can_stay_exact():
    model = converted("gpt2", gated=False)
    assert not any(isinstance(module, GatedNorm | GatedActivation) for module in model.modules())
    assert not model.transformer.h[0].attn.operands.softmax_gated


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
def test_a_compiled_network_is_one_graph():
    model, inputs = converted("gpt2", timesteps=3), FAMILIES["gpt2"].batch()
    expected = logits(model, inputs)
    torch._dynamo.reset()
    with torch.no_grad():
        answer = torch.compile(model, fullgraph=True, backend="eager")(**inputs, use_cache=False).logits
    # The kernels of the machine add in another order than torch.
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)
