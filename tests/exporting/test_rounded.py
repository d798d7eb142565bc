"""A model with the parameters of its whole-number export, against the blocks simulated in whole numbers."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, logits

import fas
from fas.exporting.blocks import blocks
from fas.exporting.fixed_point import fix, load_fixed_point, save_fixed_point
from fas.exporting.rounded import rounded


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
@pytest.mark.parametrize("bits", [16, 24])
def test_a_model_runs_as_its_blocks_do(name, bits, tmp_path):
    family = FAMILIES[name]
    model = fas.convert(family.build(), fas.FAS(timesteps=4, neuron="signed_if"), calibration=[family.batch()])
    batch = family.batch(2, 5)
    before, state = logits(model, batch), {key: value.clone() for key, value in model.state_dict().items()}
    save_fixed_point([fix(block, bits) for block in blocks(model)], tmp_path / "f")
    fixed = load_fixed_point(tmp_path / "f")
    with rounded(model, fixed):
        inside = logits(model, batch)
        for block, whole in zip(blocks(model, batch), fixed, strict=True):
            # What the model's own layers answer with rounded parameters is what whole numbers answer.
            run = whole.run(whole.encode(block.trace.current))
            same = (run.spikes == block.trace.spikes).double().mean()
            # Whole numbers round currents too: after 4 steps a potential is off by 4/2 of 2⁻¹² or 2⁻²⁰ thresholds at
            # most, which moves a spike from one step to another that often; ten times that for small samples.
            assert same > 1 - 10 * 2 * 2 * 2.0 ** -(12 if bits == 16 else 20)
            exact = (run.spikes.sum(0) == block.trace.spikes.sum(0)).all(-1)
            found, wanted = whole.output(run)[0][exact], block.trace.output[0].double()[exact]
            assert exact.any()
            # Float32 sums of at most 100 products, against exact ones.
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert not torch.equal(inside, before)
    assert torch.equal(logits(model, batch), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_shared_weights_are_rounded_in_the_layer_only():
    family = FAMILIES["gpt2"]
    model = fas.convert(family.build(), fas.FAS(timesteps=4, neuron="signed_if"), calibration=[family.batch()])
    embedding = model.transformer.wte.weight
    assert model.lm_head.weight is embedding
    before = embedding.clone()
    with rounded(model, [fix(block) for block in blocks(model)]):
        assert not torch.equal(model.lm_head.weight, before) and torch.equal(model.transformer.wte.weight, before)
    assert model.lm_head.weight is embedding


def test_parameters_come_back_after_an_error():
    family = FAMILIES["gpt2"]
    model = fas.convert(family.build(), fas.FAS(timesteps=4, neuron="signed_if"), calibration=[family.batch()])
    weight = model.transformer.h[0].mlp.c_fc.weight
    with pytest.raises(RuntimeError, match="on purpose"), rounded(model, [fix(b) for b in blocks(model)]):
        assert model.transformer.h[0].mlp.c_fc.weight is not weight
        raise RuntimeError("on purpose")
    assert model.transformer.h[0].mlp.c_fc.weight is weight
