"""Accumulators against loops that read and write each of them, spike by spike."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from made import Trains, converted
from tiny_models import FAMILIES

import fas
from fas.data.for_model import Sample, held_out_batches
from fas.energy.estimate import count_both, estimate_energy
from fas.surgery.replace import spiking_layers


def trains_of(model, batch):
    seen = Trains()
    with torch.no_grad(), model.simulation.using(observers=[seen], execution="stepped"):
        model(**batch)
    return seen.calls


def numbers(found, network, phase="prefill"):
    return {line.item: line.number * found.spiking.tokens[phase] for line in found.bill(phase, network)}


class Memory:
    """Accumulators in a memory that counts how often each word is read and written."""

    def __init__(self):
        self.words, self.accesses = {}, 0

    def add(self, where, value):
        self.accesses += 2
        self.words[where] = self.words.get(where, 0.0) + value


@pytest.mark.parametrize("neuron", ["signed_if", "signed_digit"])
def test_row_by_row_every_spike_reads_and_writes_all_sums_behind_it(neuron):
    batch = {"input_ids": FAMILIES["gpt2"].batch()["input_ids"][:1, :4]}
    model = converted(coverage="mlp", neuron=neuron)
    found, trains, layers = estimate_energy(model, [batch]), trains_of(model, batch), spiking_layers(model)
    spiking, twin, skipping = Memory(), Memory(), Memory()
    for site in model.sites:
        (train,) = trains[site.path]
        outputs = sum(layers[path].out_features for path in site.layers)
        for position in range(train.shape[2]):
            for channel in range(train.shape[3]):
                spikes = train[:, 0, position, channel].tolist()
                for output in range(outputs):
                    for spike in spikes:
                        if spike:
                            spiking.add((site.path, position, output), 1.0)
                    twin.add((site.path, position, output), 1.0)
                    if any(spikes):
                        skipping.add((site.path, position, output), 1.0)
    assert 0 < skipping.accesses < min(spiking.accesses, twin.accesses)
    for network, memory in (("snn_int8", spiking), ("snn", spiking), ("twin", twin), ("twin_zeros_skipped", skipping)):
        assert numbers(found, network)["accumulators"] == 32 * memory.accesses
    # All spikes of a window at once.
    window = replace(found, hardware=replace(found.hardware, order="window"))
    for network, memory in (
        ("snn_int8", skipping),
        ("snn", skipping),
        ("twin", twin),
        ("twin_zeros_skipped", skipping),
    ):
        assert numbers(window, network)["accumulators"] == 32 * memory.accesses
    # One output at a time: each of them once, whatever the network.
    output = replace(found, hardware=replace(found.hardware, order="output"))
    for network in ("snn", "snn_int8", "ann", "twin", "twin_zeros_skipped"):
        assert numbers(output, network)["accumulators"] == pytest.approx(32 * len(twin.words))
    # Potential and current, of every neuron at every step.
    steps = sum(train.numel() for site in model.sites for train in trains[site.path])
    assert numbers(found, "snn_int8")["membrane potentials"] == 2 * numbers(found, "snn_int8")["input currents"]
    assert numbers(found, "snn_int8")["input currents"] == 32 * steps


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("schedule", ["layerwise", "online"])
def test_sums_that_layers_and_products_deliver(name, schedule):
    batch = FAMILIES[name].batch()
    model = converted(name, coverage="linear", neuron="signed_if", schedule=schedule)
    layers, tokens = spiking_layers(model), 27
    spiking, dense = count_both(model, [batch])
    head = {"gpt2": 2, "llama": 4}[name]
    for site in model.sites:
        outputs = tokens * sum(layers[path].out_features for path in site.layers)
        # Online every step has its own sums, the output layer one for all of them.
        times = 4 if schedule == "online" and site.path != "lm_head" else 1
        assert (
            dense.by_place()[site.path].outputs == outputs and spiking.by_place()[site.path].outputs == times * outputs
        )
    rest = sum((f.outputs for path, f in dense.by_place().items() if path not in spiking_sites(model)), 0)
    # A score per pair of query and key that sees it, and a value per query and channel.
    assert rest == 2 * (3 * head * 45 + tokens * 32)


def spiking_sites(model):
    return {site.path for site in model.sites}


def test_factors_in_attention_deliver_what_the_dense_products_do():
    batch = FAMILIES["gpt2"].batch()
    model = converted(coverage="full", neuron="signed_if")
    spiking, _ = count_both(model, [batch])
    by_role = {site.role: spiking.by_place()[site.path].outputs for site in model.sites}
    assert (by_role["query"], by_role["attention_weight"]) == (3 * 2 * 45, 27 * 32)
    assert by_role["key"] == by_role["value"] == 27 * 32
    found = estimate_energy(model, [batch], order="output")
    own, theirs = numbers(found, "twin"), numbers(found, "ann")
    total = [entry["accumulators"] + entry["other accumulators"] for entry in (own, theirs)]
    # The twin reads its factors as integers, and not as floats.
    pairs = 2 * 3 * 2 * 45 * 2 * 16
    assert total[1] - total[0] == pytest.approx(32 * pairs)


def test_the_offset_of_a_query_is_a_product_with_every_new_key():
    batch = FAMILIES["gpt2"].batch()
    model = converted(coverage="full", neuron="signed_if")
    products = 0
    for site in model.sites:
        if site.role == "query":
            offset = model.get_submodule(site.path).neuron.offset
            with torch.no_grad():
                offset.copy_(torch.where(torch.arange(32) < 5, 0.25, 0.0))
            products += 27 * 5
    found = estimate_energy(model, [batch])
    places = found.spiking.by_place()
    assert sum(places[site.path].multiply_adds for site in model.sites) == products == 2 * 27 * 5
    norms = 5 * 27 * 32 * 2
    for network in ("snn", "snn_int8", "twin"):
        assert numbers(found, network)["other multiply-adds"] == pytest.approx(norms + products)
    assert numbers(found, "ann")["other multiply-adds"] == pytest.approx(norms + 2 * 3 * 2 * 45 * 2 * 16)


@pytest.mark.slow
def test_accumulators_turn_the_rate_code_of_the_embedded_model_from_a_win_into_a_loss():
    loaded = fas.load("embedded")
    fas.convert(
        loaded.model,
        fas.FAS(timesteps=8, neuron="signed_if"),
        calibration="stdlib",
        tokenizer=loaded.tokenizer,
        sample=Sample(8192, 256, 8),
    )
    (batch,) = held_out_batches(loaded, "stdlib", Sample(496, 248, 8))
    found, trains, layers = (
        estimate_energy(loaded.model, [batch]),
        trains_of(loaded.model, batch),
        spiking_layers(loaded.model),
    )
    spikes = products = 0
    for site in loaded.model.sites:
        outputs = sum(layers[path].out_features for path in site.layers)
        for train in trains[site.path]:
            for step in train:
                spikes += int(step.sum()) * outputs
            products += train[0].numel() * outputs
    # 10 pJ for 64 bits of 8 KB SRAM: a word of 32 is read and written for as much.
    accumulators = {"snn_int8": 10 * spikes / 496, "twin": 10 * products / 496}
    energies, without = {}, {}
    for network, cost in accumulators.items():
        lines = {line.item: line.energy for line in found.bill("prefill", network)}
        assert lines["accumulators"] == pytest.approx(cost)
        energies[network] = sum(lines.values())
        without[network] = energies[network] - cost - lines["input currents"] - lines["other accumulators"]
    assert without["snn_int8"] / without["twin"] == pytest.approx(0.97, abs=0.02)
    # Floats of attention and normalisation move their sums too, in both networks alike.
    with_sites = [without[network] + accumulators[network] for network in ("snn_int8", "twin")]
    assert with_sites[0] / with_sites[1] == pytest.approx(2.05, abs=0.1)
    assert energies["snn_int8"] / energies["twin"] == pytest.approx(2.0, abs=0.1)
