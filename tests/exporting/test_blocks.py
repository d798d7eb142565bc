from __future__ import annotations

import functools

import made
import pytest
import torch
from tiny_models import FAMILIES, logits

import fas
from fas.errors import NotCalibratedError, SiteError
from fas.exporting.blocks import blocks, left_out
from fas.exporting.folded import fold
from fas.layers.linear import SpikingLinear
from fas.surgery.replace import populations

T = 5


converted = functools.partial(made.converted, timesteps=T, seeds=(1,), neuron="ternary_phase")


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert_mlm", "opt"])
def test_a_trace_is_what_the_model_did(family: str) -> None:
    model, inputs = converted(family, neuron="signed_if"), FAMILIES[family].batch(2, 6, seed=3)
    found = blocks(model, inputs, rows=64)
    assert [block.path for block in found] == [site.path for site in model.sites]
    with torch.no_grad(), fas.record(model, trains=True) as spikes:
        model(**inputs)
    for block in found:
        trace, population = block.trace, populations(model)[block.path]
        assert trace is not None
        recorded = spikes.sites[block.path].trains[0].flatten(1, -2)
        assert torch.equal(trace.spikes.abs().to(torch.uint8), recorded[:, :64])
        # With its sign the train decodes to what the layers received.
        mean = trace.spikes.float().sum(0) * population.threshold.detach() / T + population.offset.detach()
        for layer in block.layers:
            begin, end = block.slices[layer.path]
            # float32 sums over up to 48 channels, in another order.
            torch.testing.assert_close(layer(mean), trace.output[0, :, begin:end], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", ["float", "int8"])
def test_a_single_row(weights: str) -> None:
    """A single token is multiplied by its counts, which are no values."""
    chosen = FAMILIES["gpt2"]
    model = chosen.build(activation_function="relu")
    model = fas.convert(model, fas.FAS(timesteps=T, neuron="signed_if"), calibration=[chosen.batch()])
    model.weights = weights
    for block in blocks(model, chosen.batch(1, 1, seed=3)):
        folded, trace = fold(block), block.trace
        assert trace is not None and (block.before is not None) == block.path.endswith("mlp.c_proj")
        assert torch.equal(folded.run(folded.received(block))[0].to(torch.uint8), folded.fired(trace.spikes))


def test_rows_are_the_first() -> None:
    model, inputs = converted(), FAMILIES["gpt2"].batch(2, 6)
    all_rows, few = blocks(model, inputs, rows=12)[0].trace, blocks(model, inputs, rows=7)[0].trace
    assert all_rows is not None and few is not None
    assert few.current.shape[:2] == (1, 7) and few.spikes.shape[:2] == (T, 7)
    assert torch.equal(few.current, all_rows.current[:, :7]) and torch.equal(few.output, all_rows.output[:, :7])


@pytest.mark.parametrize("operators", ["difference", "instant"])
def test_online_a_trace_has_every_step(operators: str) -> None:
    model = converted("opt", coverage="mlp", neuron="soft_reset_if", schedule="online", operators=operators)
    inputs = FAMILIES["opt"].batch(2, 4, seed=3)
    for block in blocks(model, inputs):
        trace = block.trace
        assert trace is not None and not block.even and len(trace.current) == len(trace.output) == T
        assert not torch.equal(trace.current[0], trace.current[-1]) or block.path.endswith("0.fc2")
        signal = trace.spikes.float() * block.threshold + block.offset
        (layer,) = block.layers
        # Differences of running means lose a few bits.
        torch.testing.assert_close(layer(signal), trace.output, rtol=1e-3, atol=2e-4)


def test_the_layer_in_front_is_found_where_nothing_stands_between() -> None:
    inputs = FAMILIES["opt"].batch(2, 4, seed=3)
    for coverage in ("mlp", "linear"):
        for block in blocks(converted("opt", coverage=coverage), inputs):
            trace = block.trace
            assert trace is not None and (block.before is not None) == block.path.endswith("fc2")
            if block.before is not None:
                assert block.before.path == block.path.replace("fc2", "fc1") and trace.source is not None
                # The same product over 32 channels, in another order.
                torch.testing.assert_close(block.before(trace.source), trace.current, rtol=1e-5, atol=1e-5)
    # GELU stands between.
    assert all(block.before is None for block in blocks(converted(), FAMILIES["gpt2"].batch(2, 4)))


def test_parameters_and_back() -> None:
    model = converted("gpt2", granularity="tensor", neuron="ternary_phase")
    for block in blocks(model):
        population = populations(model)[block.path]
        again, layers = block.modules()
        assert torch.equal(again.log_threshold, population.log_threshold.expand(block.channels))
        assert torch.equal(again.v_init, population.v_init.expand(block.channels))
        x = torch.randn(3, 4, block.channels)
        with torch.no_grad():
            # The same arithmetic on the same parameters.
            assert torch.equal(again(x), population(x))
            again.simulation.network = "snn"
            for path, layer in zip(block.slices, layers, strict=True):
                original = model.get_submodule(path)
                assert isinstance(original, SpikingLinear)
                torch.testing.assert_close(layer(x), original(x), rtol=1e-5, atol=1e-5)


def test_thresholds_that_follow_tokens_are_refused() -> None:
    with pytest.raises(SiteError, match="AdaptiveDigit follow the size of each token"):
        blocks(converted("gpt2", neuron="adaptive_digit"))


def test_the_network_that_is_set_does_not_matter() -> None:
    model, inputs = converted(), FAMILIES["gpt2"].batch(2, 4)
    spiking = blocks(model, inputs)[0].trace
    model.network = "ann"
    dense = blocks(model, inputs)[0].trace
    assert spiking is not None and dense is not None and torch.equal(spiking.spikes, dense.spikes)
    assert model.network == "ann" and not any(module._forward_hooks for module in model.modules())
    assert logits(model, inputs, network="snn").isfinite().all()


def test_refusals() -> None:
    with pytest.raises(NotCalibratedError, match="has no thresholds yet"):
        blocks(fas.convert(FAMILIES["gpt2"].build(), fas.FAS()))
    model = converted("opt", coverage="full")
    assert len(left_out(model)) == 8 and set(left_out(model).values()) == {
        "a factor in attention, which no layer follows"
    }
    with pytest.raises(
        SiteError, match=r"operands\.query is a factor in attention.*; sites with linear layers are model"
    ):
        blocks(model, sites=["model.decoder.layers.0.self_attn.operands.query"])
    with pytest.raises(SiteError, match=r"nosuch is no site of the model"):
        blocks(model, sites=["nosuch"])
    seq2seq = fas.convert(
        FAMILIES["t5"].build(), fas.FAS(coverage="mlp", neuron="signed_if"), calibration=[FAMILIES["t5"].batch()]
    )
    assert len(blocks(seq2seq, FAMILIES["t5"].batch())) == 4
