"""Twins and the sparse network against plain loops, and the searches against all candidates."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from made import converted
from tiny_models import FAMILIES

from fas.energy import rivals
from fas.energy.bill import Hardware
from fas.energy.estimate import Estimate, count_both, estimate_energy, levels_of
from fas.energy.prices import load_prices
from fas.energy.rivals import Rival, above, integers, magnitudes_of, measure_rivals, sending
from fas.energy.sensitivity import kinds, measurements, sensitivity
from fas.layers.population import Population
from fas.surgery.replace import populations, spiking_layers


def inputs_of(model, batch, network="ann"):
    """What every site receives and sends while a network runs."""
    seen = {}

    def look(population, inputs, output):
        seen[population.path] = inputs[0].detach(), output.detach()

    hooks = [population.register_forward_hook(look) for population in populations(model).values()]
    with torch.no_grad(), model.simulation.using(network=network):
        model(**batch)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_a_twin_sends_whole_numbers_of_so_many_bits(name, bits):
    model, batch = converted(name, coverage="mlp", neuron="signed_digit"), FAMILIES[name].batch()
    for path, (x, _) in inputs_of(model, batch).items():
        population: Population = populations(model)[path]
        assert population.neuron.signed == (name == "gpt2")
        x = population.replaced(x).flatten(0, -2)[:3].double()
        unit = (population.threshold.detach() / population.neuron.resolution(4)).double()
        offset = population.offset.detach().double()
        sent, x = integers(bits)(population, x).detach() - offset, x - offset
        most = 2 ** (bits - 1) - 1 if population.neuron.signed else 2**bits - 1
        for row, out in zip(x, sent, strict=True):
            scaled = [float(v / u) for v, u in zip(row, unit.expand(len(row)), strict=True)]
            step = max(map(abs, scaled)) / most
            for value, got, u in zip(scaled, out.tolist(), unit.expand(len(row)).tolist(), strict=True):
                level = got / u / step
                assert abs(level - round(level)) < 1e-6 and abs(round(level)) <= most
                # The nearest of them.
                assert abs(value / step - round(level)) <= 0.5 + 1e-6


def test_the_sparse_network_leaves_out_the_smallest_inputs():
    model, batch = converted(coverage="linear"), FAMILIES["gpt2"].batch()
    magnitudes = magnitudes_of(model, [batch])
    inputs = inputs_of(model, batch)
    for path, (x, _) in inputs.items():
        sizes = sorted(x.abs().flatten().tolist())
        assert magnitudes[path].tolist() == sizes
        for share in (0.0, 0.3, 0.9):
            sent = above(magnitudes, share)(populations(model)[path], x)
            limit = sizes[int(share * len(sizes))]
            for value, got in zip(x.flatten().tolist(), sent.flatten().tolist(), strict=True):
                assert got == (value if abs(value) >= limit else 0.0)
    with torch.no_grad():
        answer = model(**batch).logits
        with sending(model, above(magnitudes, 0.0), "ann"):
            dense = model(**batch).logits
        with model.simulation.using(network="ann"):
            assert torch.equal(model(**batch).logits, dense)
        assert torch.equal(model(**batch).logits, answer)


def loss(model, batch):
    with torch.no_grad():
        logits = model(**batch).logits[:, :-1]
    return math.exp(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten()))


def test_rivals_reach_the_spiking_network_and_no_cheaper_one_does():
    model, batch = converted(coverage="linear", neuron="signed_if"), FAMILIES["gpt2"].batch()
    scores, found = measure_rivals(model, lambda: loss(model, batch), [batch], [FAMILIES["gpt2"].batch(seed=3)])
    assert scores["snn"] == loss(model, batch)
    by = {rival.name: rival for rival in found}
    assert [*by] == ["twin_4", "twin_6", "twin_8", "best_twin", "sparse"]
    target = max(scores.values())

    def of(send, network):
        with sending(model, send, network):
            return loss(model, batch)

    for bits in (4, 6, 8, by["best_twin"].bits):
        name = "best_twin" if bits == by["best_twin"].bits and bits not in (4, 6, 8) else f"twin_{bits}"
        assert by[name].score == of(integers(bits), "quantised")
    best = by["best_twin"].bits
    assert of(integers(best), "quantised") <= 1.001 * target
    assert best == 2 or of(integers(best - 1), "quantised") > 1.001 * target
    assert by["sparse"].score == of(
        above(magnitudes_of(model, [FAMILIES["gpt2"].batch(seed=3)]), by["sparse"].share), "ann"
    )
    assert by["sparse"].score <= target
    # What they leave out, value by value.
    layers = spiking_layers(model)
    for rival, send, network in (
        (by["twin_4"], integers(4), "quantised"),
        (by["sparse"], above(magnitudes_of(model, [FAMILIES["gpt2"].batch(seed=3)]), by["sparse"].share), "ann"),
    ):
        with sending(model, send, network):
            sent = inputs_of(model, batch, network)
        for site in model.sites:
            silent = populations(model)[site.path].offset if network == "quantised" else 0
            number = int((sent[site.path][1] != silent).sum()) * sum(layers[p].out_features for p in site.layers)
            assert rival.counts.by_place()[site.path].nonzero_multiply_adds == number


def estimate(**options):
    model, batch = converted(coverage="linear", neuron="signed_if"), FAMILIES["gpt2"].batch()
    return model, estimate_energy(model, [batch], score=lambda: loss(model, batch), **options)


def test_energies_of_rivals_by_hand():
    model, found = estimate()
    layers, tokens = spiking_layers(model), 27
    outputs = {site.path: sum(layers[p].out_features for p in site.layers) for site in model.sites}
    products = sum(tokens * site.channels * outputs[site.path] for site in model.sites)
    rest = math.fsum(
        line.energy for line in found.bill("prefill", "ann")
        if not line.memory and line.item != "multiply-adds after the sites"
    )  # fmt: skip
    for bits in (4, 6, 8):
        by_hand = products * (0.2 * bits / 8 + 0.1) / tokens + rest
        assert found.energy("prefill", "compute", f"twin_{bits}") == pytest.approx(by_hand)
        (rival,) = (rival for rival in found.rivals if rival.name == f"twin_{bits}")
        some = sum(rival.counts.by_place()[site.path].nonzero_multiply_adds for site in model.sites)
        less = (products - some) * (0.2 * bits / 8 + 0.1) / tokens
        skipping = found.energy("prefill", "compute", f"twin_{bits}_zeros_skipped")
        assert skipping == pytest.approx(by_hand - less) and 0 < some < products
    sparse = found.rivals[-1].counts.total().nonzero_multiply_adds
    assert found.energy("prefill", "compute", "sparse") == pytest.approx(4.6 * sparse / tokens + rest)
    assert found.fair == "best_twin_zeros_skipped" and found.baselines["sparse"] == "snn"
    assert (
        found.score("twin_4_zeros_skipped") == found.rivals[0].score and found.score("snn_int8") == found.scores["snn"]
    )
    assert found.score("ann_zeros_skipped") == found.scores["ann"] and found.score("twin") == found.scores["snn"]
    assert len(found.names) == 6 + 2 * 4 + 1 and "of inputs skipped" in found.names["sparse"]
    stated = {row.conditions["energy_of"]: row.conditions for row in found.measurements() if row.quantity == "energy"}
    for name, about in (("twin_6", {"bits": 6}), ("sparse", {"share": found.rivals[-1].share}), ("ann", {})):
        shown = {key: value for key, value in stated[name].items() if key in ("bits", "share", "perplexity")}
        assert shown == {**about, "perplexity": found.score(name)}
    assert Estimate(found.spiking, found.dense, found.levels, found.hardware).fair == "twin_zeros_skipped"


def test_swings_are_ratios_at_other_prices():
    _, found = estimate()
    for accounting in ("compute", "memory"):
        swings = {swing.name: swing for swing in sensitivity(found, "prefill", accounting, "best_twin")}
        ratio = found.ratio("prefill", accounting, "best_twin")
        assert "evaluation" in swings and ("weight_read" in swings) == (accounting == "memory")
        assert "fp16_add" not in swings and list(swings.values()) == sorted(swings.values(), key=lambda s: -s.width)
        for name, swing in swings.items():
            assert swing.ratio == ratio
            if name in found.prices.constants:
                for factor, value in ((0.5, swing.half), (2, swing.double)):
                    constants = dict(found.prices.constants)
                    constants[name] = replace(constants[name], value=factor * constants[name].value)
                    there = replace(found, hardware=Hardware(replace(found.prices, constants=constants)))
                    assert value == there.ratio("prefill", accounting, "best_twin")
        if accounting == "memory":
            there = replace(found, hardware=Hardware(found.prices, order="output"))
            assert swings["order output"].double == there.ratio("prefill", "memory", "best_twin")
            assert swings["order output"].half is None and {"reuse none", "reuse pass", "order window"} < set(swings)


def test_kinds_of_layers_add_up():
    _, found = estimate()
    parts = kinds(found)
    assert set(parts) == {
        "transformer.h.*.attn.c_attn", "transformer.h.*.attn.c_proj", "transformer.h.*.mlp.c_fc",
        "transformer.h.*.mlp.c_proj", "lm_head",
    }  # fmt: skip
    for network in ("snn_int8", "best_twin_zeros_skipped", "twin"):
        for accounting in ("compute", "memory"):
            whole = math.fsum(
                line.energy for line in found._counted("prefill", accounting, network)
                if not line.item.startswith(("other", "float", "multiplications", "evaluations"))
            )  # fmt: skip
            own = []
            for part in parts.values():
                lines = part._counted("prefill", accounting, network)
                own.append(
                    math.fsum(line.energy for line in lines if not line.item.startswith(("float", "evaluations")))
                )
            assert math.fsum(own) == pytest.approx(whole)
    rows = list(measurements(found, model="tiny"))
    assert {row.origin for row in rows} == {"estimated"} and {row.conditions["model"] for row in rows} == {"tiny"}
    points = {
        r.conditions["kind"]: r for r in rows if r.quantity == "break_even" and r.conditions["accounting"] == "compute"
    }
    part = parts["lm_head"]
    assert points["lm_head"].value == part.break_even("prefill", "compute", found.fair)
    assert points["lm_head"].conditions["fires"] == part.spikes_per_neuron("prefill")


def test_a_model_without_prices_for_dense_networks_has_no_swings():
    model, batch = converted(coverage="linear", neuron="signed_if"), FAMILIES["gpt2"].batch()
    found = Estimate(*count_both(model, [batch]), levels_of(model), Hardware(load_prices("loihi")))
    assert sensitivity(found, "prefill", "memory", "twin") == []


def test_a_search_that_nothing_reaches_ends_at_the_most_bits(monkeypatch):
    model, batch = converted(coverage="mlp"), FAMILIES["gpt2"].batch()
    values = iter([1.0, 1.0])
    _, found = measure_rivals(model, lambda: next(values, 9.0), [batch], [batch])
    by = {rival.name: rival for rival in found}
    assert by["best_twin"].bits == rivals._MOST and by["sparse"].share == 0.0 and isinstance(by["sparse"], Rival)
