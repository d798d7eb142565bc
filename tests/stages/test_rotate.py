"""Rotation changes weights and not the answer; what cannot be turned is left as it was."""

import pytest
import torch
import transformers
from tiny_models import FAMILIES, logits

import fas
from fas.errors import SiteError
from fas.methods.las import LAS
from fas.stages.rotate import Rotate, rotation

TURNED = ["gpt2", "opt", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma"]


def converted(name, method=None, **options):
    """Norms of tiny models have gain one and bias zero: others show what is folded."""
    model = FAMILIES[name].build(**options)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(
                    0.3 * torch.randn_like(parameter)
                ) if "bias" not in parameter_name else parameter.normal_()
    return fas.convert(model, fas.FAS() if method is None else method)


@pytest.mark.parametrize("method", [fas.FAS(coverage="mlp"), LAS()], ids=["fas", "las"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_logits_stay_the_same(name, method):
    model, inputs = converted(name, method).double(), FAMILIES[name].batch(padded=True)
    before, weights = logits(model, inputs, network="ann"), {k: v.clone() for k, v in model.state_dict().items()}
    record = Rotate().run(model, [])
    after = logits(model, inputs, network="ann")
    # Float64, but LLaMA's norm and positions compute in float32.
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5 * float(before.abs().max()))
    assert record.stage == "rotate" and record.results["change"] < 1e-5
    changed = [k for k, v in model.state_dict().items() if k.endswith("weight") and not torch.allclose(v, weights[k])]
    assert len(changed) > 10


@pytest.mark.parametrize("name", TURNED)
def test_architectures_that_can_be_turned(name):
    model, inputs = converted(name), FAMILIES[name].batch()
    before = logits(model, inputs, network="ann")
    Rotate(seed=3).run(model, [])
    # Float32 weights, rounded once more.
    torch.testing.assert_close(
        logits(model, inputs, network="ann"), before, rtol=1e-3, atol=1e-3 * float(before.abs().max())
    )


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(TURNED)))
def test_the_others_are_left_as_they_were(name):
    model, inputs = converted(name), FAMILIES[name].batch()
    before, keys = logits(model, inputs, network="ann"), list(model.state_dict())
    with pytest.raises(SiteError, match=r"cannot be turned|residual stream has|nothing to rotate"):
        Rotate().run(model, [])
    assert torch.equal(logits(model, inputs, network="ann"), before) and list(model.state_dict()) == keys


@pytest.mark.parametrize("keeps_mean", [True, False])
@pytest.mark.parametrize("width", [1, 2, 7, 32])
def test_rotations(width, keeps_mean):
    turn = rotation(width, keeps_mean=keeps_mean, seed=1)
    # Float64 rounding of sums of at most 32 products of order one.
    torch.testing.assert_close(turn @ turn.T, torch.eye(width, dtype=torch.float64), rtol=0, atol=1e-12)
    ones = torch.ones(width, dtype=torch.float64)
    if keeps_mean:
        torch.testing.assert_close(turn @ ones, ones, rtol=0, atol=1e-12)
    elif width == 32:
        torch.testing.assert_close(turn.abs(), torch.full((32, 32), 32**-0.5, dtype=torch.float64))
        # The first column of a Hadamard matrix is all ones: what is seen there are the random signs.
        assert set(turn[:, 0].sign().tolist()) == {-1.0, 1.0}
    assert torch.equal(turn, rotation(width, keeps_mean=keeps_mean, seed=1))


def test_outliers_are_spread():
    model, inputs = converted("llama"), FAMILIES["llama"].batch()
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 3] *= 50
    seen = []
    handle = model.model.layers[1].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    logits(model, inputs, network="ann")
    Rotate().run(model, [])
    logits(model, inputs, network="ann")
    handle.remove()
    before, after = (float(x.abs().max() / x.square().mean().sqrt()) for x in seen[::2])
    assert after < before / 2


def test_as_an_option_with_files(tmp_path):
    family, inputs = FAMILIES["gpt2"], FAMILIES["gpt2"].batch()
    method = fas.FAS(coverage="full", timesteps=10, neuron="phase", rotate=True)
    assert [type(stage).__name__ for stage in method.stages()] == ["Rotate", "Calibrate"]
    model = converted("gpt2", method)
    dense = logits(model, inputs, network="ann")
    fas.calibrate(model, [inputs, family.batch(seed=2)])
    assert [record.stage for record in model.records] == ["rotate", "calibrate"]
    answer = logits(model, inputs)
    # Ten bits a value.
    assert 0 < float((answer - dense).norm() / dense.norm()) < 0.05
    assert model.lm_head.weight is not model.transformer.wte.weight
    model.save_pretrained(tmp_path / "snn")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "snn")
    assert torch.equal(logits(loaded, inputs), answer)
