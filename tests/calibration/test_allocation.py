"""The price of spikes that a network is calibrated at: asked for, found by the spikes, or the code's own."""

import math

import made
import pytest
import torch
from tiny_models import FAMILIES, logits
from transformers import MixtralConfig, MixtralForCausalLM

import fas
from fas.calibration.allocation import costs_of, price_of
from fas.calibration.fit import fit_layer
from fas.calibration.walk import dense_inputs
from fas.errors import CalibrationError
from fas.neurons.signed_digit import SignedDigit
from fas.stages.calibrate import Calibrate
from fas.surgery.replace import populations


@pytest.mark.parametrize("exponent", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("wanted", [0.01, 0.5, 1.9])
def test_the_price_is_the_one_at_which_so_many_are_sent(exponent, wanted):
    def sent(price):
        return 2 / (1 + (50 * price) ** exponent)

    # In closed form the price at which 2 / (1 + (50 p)^a) is the number asked for.
    expected = (2 / wanted - 1) ** (1 / exponent) / 50
    if not 1e-5 < expected < 10:
        pytest.skip("beyond the prices that are tried")
    assert abs(sent(price_of(wanted, sent)) / wanted - 1) <= 0.01


def test_spikes_out_of_reach_are_named(caplog):
    assert price_of(5.0, lambda price: 2 / (1 + price)) < 2e-5
    assert "5 spikes per neuron were asked for" in caplog.text
    assert price_of(0.1, lambda price: 1 - 1e-6 * math.log(price)) > 5


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {"neuron": "signed_digit", "coverage": "mlp"}),
        ("gpt2", {"neuron": "phase", "timesteps": 5, "coverage": "mlp"}),
    ],
    ids=str,
)
def test_a_network_sends_the_spikes_asked_for(name, options):
    data = [FAMILIES[name].batch(rows=16, length=16)]
    model = made.converted(name, seeds=(), spikes=0.9, **options)
    record = fas.calibrate(model, data)[0]
    with fas.record(model) as spikes:
        for batch in data:
            logits(model, batch)
    # The price is found on the dense network's inputs, and 1 % is as near as its search goes.
    assert spikes.spikes_per_neuron == pytest.approx(0.9, rel=0.03)
    assert record.settings["spikes"] == 0.9


@pytest.mark.parametrize(
    "options", [{"neuron": "phase", "timesteps": 9}, {"neuron": "signed_digit", "timesteps": 6}], ids=str
)
def test_no_other_code_weighs_spikes_unasked(options):
    model = made.converted("gpt2", coverage="mlp", **options)
    assert "expected_divergence" not in model.records[-1].results


def test_spikes_are_asked_of_experts_that_no_token_reaches():
    config = MixtralConfig(
        vocab_size=100, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=1,
    )  # fmt: skip
    model, batch = MixtralForCausalLM(config).eval(), {"input_ids": torch.arange(6).view(2, 3)}
    # Six tokens for eight experts.
    fas.convert(model, fas.FAS(timesteps=8, coverage="mlp", spikes=1.0), calibration=[batch])
    seen = [len(rows) for rows in dense_inputs(model, [batch], 100).values()]
    assert min(seen) == 0 and sum(seen) == 6
    assert 0 < model.records[-1].results["expected_divergence"] < math.inf


def test_codes_with_levels_to_spare_weigh_spikes_by_themselves():
    data = [FAMILIES["gpt2"].batch(rows=4, length=12)]
    found = []
    for options in ({}, {"spike_price": SignedDigit.spike_price}, {"spike_price": 0.0}):
        model = made.converted("gpt2", seeds=(), neuron="signed_digit", timesteps=8, **options)
        results = fas.calibrate(model, data)[0].results
        found.append(([p.log_threshold for p in populations(model).values()], "expected_divergence" in results))
    assert [priced for _, priced in found] == [True, True, False]
    assert all(map(torch.equal, found[0][0], found[1][0]))
    assert not all(map(torch.equal, found[0][0], found[2][0]))


@pytest.mark.parametrize("name", ["bert_classifier", "roberta"])
def test_a_classifier_has_no_price_unasked(name):
    # One answer of a row: 0.006 nats a spike are measured on answers of single tokens.
    data, found = [FAMILIES[name].batch(rows=4, length=12)], []
    for options in ({}, {"spike_price": 0.0}, {"spike_price": SignedDigit.spike_price}):
        model = made.converted(name, seeds=(), neuron="signed_digit", timesteps=8, **options)
        results = fas.calibrate(model, data)[0].results
        found.append(([p.log_threshold for p in populations(model).values()], "expected_divergence" in results))
    assert [priced for _, priced in found] == [False, False, True]
    assert all(map(torch.equal, found[0][0], found[1][0]))


@pytest.mark.parametrize("name", ["bert_mlm", "t5"])
def test_other_networks_that_answer_each_token_have_one(name):
    model = made.converted(name, neuron="signed_digit", timesteps=8)
    assert "expected_divergence" in model.records[-1].results


@pytest.mark.parametrize("spikes", [None, 0.9])
def test_factors_of_attention_have_no_price(spikes):
    model, seen = made.converted("gpt2", seeds=(), neuron="phase", coverage="full"), set()

    def fit(site, x, cost):
        seen.add((site.path, cost is not None))
        return fit_layer(x, (-15, 15))

    costs = costs_of(model, [FAMILIES["gpt2"].batch()], 1.0 if spikes is None else None, spikes, fit)
    assert set(costs) == {site.path for site in model.sites if site.layers} < {site.path for site in model.sites}
    assert seen == (set() if spikes is None else {(site.path, bool(site.layers)) for site in model.sites})


def test_without_logits_the_default_weighs_nothing():
    # An encoder without a head: nothing tells what an error costs.
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    torch.manual_seed(0)
    model, data = BertModel(config).eval(), [{"input_ids": torch.arange(20).view(2, 10)}]
    fas.convert(model, fas.FAS(neuron="signed_digit", timesteps=8), calibration=data)
    assert "expected_divergence" not in model.records[-1].results
    with pytest.raises(CalibrationError, match="without logits"):
        fas.convert(fas.revert(model), fas.FAS(neuron="signed_digit", timesteps=8, spikes=1.0), calibration=data)


@pytest.mark.parametrize("spikes", [0, -1, float("nan"), True, "few"])
def test_numbers_of_spikes_that_are_none(spikes):
    with pytest.raises(ValueError, match=r"spikes is .*a number above 0"):
        fas.FAS(spikes=spikes)


def test_spikes_and_a_price_are_one_too_many():
    with pytest.raises(ValueError, match=r"spikes is 1, which finds the price: leave spike_price out"):
        Calibrate(spikes=1.0, spike_price=0.1)
    with pytest.raises(ValueError, match=r"spikes is 1, which fine calibration pays: set fine=True"):
        Calibrate(spikes=1.0, fine=False)
