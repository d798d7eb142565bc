"""Estimates against sums written out by hand, and the break-even against a network that fires that much."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import converted
from tiny_models import FAMILIES

from fas.energy.bill import Hardware
from fas.energy.estimate import ACCOUNTINGS, BASELINES, Estimate, Network, count_both, estimate_energy, levels_of
from fas.energy.operations import Counts, Operations, Reuse
from fas.energy.prices import load_prices

# One site of 4 neurons and a fan-out of 10 over 5 tokens and 8 steps; attention in front of it.
SITE = Operations(
    spikes=12, events=12, event_bits=36, windows=20, membrane_updates=160, additions=120,
    dense_multiply_adds=200, nonzero_multiply_adds=80, weight_words=120, weight_words_time=80, weight_words_pass=30,
    outputs=50, spike_bits=300, map_bits=200,
)  # fmt: skip
LAYER = Operations(
    windows=20, dense_multiply_adds=200, nonzero_multiply_adds=150, weight_words=200, weight_words_time=200,
    weight_words_pass=40, outputs=50,
)  # fmt: skip
REST = Operations(
    multiply_adds=70, multiplications=6, float_additions=9, exponentials=3, roots=1, divisions=1, activations=2,
    weight_words=70, weight_words_time=70, weight_words_pass=14, outputs=7,
)  # fmt: skip
TOKENS = 5


def estimate(prices="45nm", reuse="time", precision="fp32", site=SITE, **hardware):
    spiking = Counts({("prefill", "a"): site, ("prefill", "b"): REST}, {"prefill": TOKENS})
    dense = Counts({("prefill", "a"): LAYER, ("prefill", "b"): REST}, {"prefill": TOKENS})
    hardware = {"reuse": reuse, "precision": precision, **hardware}
    return Estimate(spiking, dense, {"a": 17}, Hardware(load_prices(prices), **hardware))


ACCESS = 0.15625
OPERANDS = 70 * 32 * 1.5625 + 70 * 64 * ACCESS
REMAINDER = 70 * 4.6 + 6 * 3.7 + 9 * 0.9 + 7 * 18.4
BY_HAND = {
    ("paper", "snn"): 0.9 * 120,
    ("paper", "ann"): 4.6 * 200,
    ("compute", "snn"): 120 * 0.9 + 160 * 1.8 + 12 * 0.9 + REMAINDER,
    # Five bits for 17 levels.
    ("compute", "snn_int8"): 120 * 0.1 + 160 * 0.2 + 12 * 0.1 + REMAINDER,
    ("compute", "ann"): 200 * 4.6 + REMAINDER,
    ("compute", "ann_zeros_skipped"): 150 * 4.6 + REMAINDER,
    ("compute", "twin"): 200 * (0.2 * 5 / 8 + 0.1) + REMAINDER,
    ("compute", "twin_zeros_skipped"): 80 * (0.2 * 5 / 8 + 0.1) + REMAINDER,
    ("memory", "snn"): 120 * 0.9 + 160 * 1.8 + 12 * 0.9 + REMAINDER
    + 80 * 32 * 1.5625 + 160 * 3 * 32 * ACCESS + 36 * 0.3125 + 120 * 64 * ACCESS + OPERANDS,
    ("memory", "snn_int8"): 120 * 0.1 + 160 * 0.2 + 12 * 0.1 + REMAINDER
    + 80 * 8 * 1.5625 + 160 * 3 * 32 * ACCESS + 36 * 0.3125 + 120 * 64 * ACCESS + OPERANDS,
    ("memory", "ann"): 200 * 4.6 + REMAINDER
    + 200 * 32 * 1.5625 + 20 * 32 * (0.3125 + ACCESS) + 200 * 64 * ACCESS + OPERANDS,
    ("memory", "ann_zeros_skipped"): 150 * 4.6 + REMAINDER
    + 150 * 32 * 1.5625 + 20 * 32 * (0.3125 + ACCESS) + 150 * 64 * ACCESS + OPERANDS,
    ("memory", "twin"): 200 * 0.225 + REMAINDER
    + 200 * 8 * 1.5625 + 20 * (5 * 0.3125 + 32 * ACCESS) + 200 * 64 * ACCESS + OPERANDS,
    ("memory", "twin_zeros_skipped"): 80 * 0.225 + REMAINDER
    + 80 * 8 * 1.5625 + 20 * (5 * 0.3125 + 32 * ACCESS) + 80 * 64 * ACCESS + OPERANDS,
}  # fmt: skip


@pytest.mark.parametrize(("accounting", "network"), BY_HAND)
def test_by_hand(accounting, network):
    # Sums of floats in another order.
    assert estimate().energy("prefill", accounting, network) == pytest.approx(
        BY_HAND[accounting, network] / TOKENS, rel=1e-12
    )
    assert estimate().unpriced("prefill", accounting, network) == {}


@pytest.mark.parametrize(("network", "moved"), [
    # Outputs are written once; the spikes, or five bits of each activation, are read again for every product.
    ("snn", 50 * 32 + 300 + 200), ("ann", 50 * 32 + 200 * 32), ("ann_zeros_skipped", 50 * 32 + 200 + 150 * 32),
    ("snn_int8", 50 * 32 + 300 + 200), ("twin", 50 * 32 + 200 * 5), ("twin_zeros_skipped", 50 * 32 + 200 + 80 * 5),
])  # fmt: skip
def test_one_output_at_a_time(network, moved):
    row, output = (estimate(order=order).energy("prefill", "memory", network) * TOKENS for order in ("row", "output"))
    updates = {"snn": 120, "snn_int8": 120, "ann_zeros_skipped": 150, "twin_zeros_skipped": 80}.get(network, 200)
    # What all have in common moves 70 operands and writes 7 sums.
    common = (70 * 64 - (70 + 7) * 32) * ACCESS
    assert row - output == pytest.approx((updates * 64 - moved) * ACCESS + common)


@pytest.mark.parametrize(("width", "add"), [(8, 0.03), (16, 0.05), (32, 0.1)])
def test_narrow_accumulators(width, add):
    found = estimate(accumulator=width)
    assert found.energy("prefill", "compute", "twin") == pytest.approx((200 * (0.125 + add) + REMAINDER) / TOKENS)
    spiking = 120 * add + 160 * 2 * add + 12 * add + REMAINDER
    assert found.energy("prefill", "compute", "snn_int8") == pytest.approx(spiking / TOKENS)
    moved = found.energy("prefill", "memory", "snn_int8") - estimate().energy("prefill", "memory", "snn_int8")
    narrower = (120 * 2 + 160 * 3) * (32 - width) * ACCESS + (120 + 320 + 12) * (0.1 - add)
    assert moved == pytest.approx(-narrower / TOKENS)
    assert found.energy("prefill", "memory", "ann") == estimate().energy("prefill", "memory", "ann")


def test_every_site_of_the_twin_has_its_own_levels():
    spiking = Counts({("prefill", "a"): SITE, ("prefill", "b"): SITE}, {"prefill": TOKENS})
    dense = Counts({("prefill", "a"): LAYER, ("prefill", "b"): LAYER}, {"prefill": TOKENS})
    found = Estimate(spiking, dense, {"a": 17, "b": 9}, Hardware(load_prices("45nm")))
    assert found.energy("prefill", "compute", "twin") == pytest.approx((200 * 0.225 + 200 * 0.2) / TOKENS)
    lines = {line.item: line for line in found.bill("prefill", "twin")}
    assert lines["activations"].number == pytest.approx((20 * 5 + 20 * 4) / TOKENS)


@pytest.mark.parametrize("network", ["snn", "snn_int8"])
def test_additions_of_digits_cost_what_other_additions_do(network):
    digits = replace(SITE, additions=0, shift_additions=SITE.additions)
    for accounting in ("compute", "memory"):
        assert estimate(site=digits).energy("prefill", accounting, network) == pytest.approx(
            BY_HAND[accounting, network] / TOKENS, rel=1e-12
        )
    assert estimate(site=digits).break_even("prefill", "compute", "twin") == pytest.approx(
        estimate().break_even("prefill", "compute", "twin")
    )


def test_the_accounting_of_papers():
    found = estimate()
    rate = found.spikes_per_neuron("prefill") / 8
    # 0.9 · T · rate · multiply-adds against 4.6 · multiply-adds; it knows no other network.
    assert found.energy("prefill", "paper", "snn") == pytest.approx(0.9 * 8 * rate * 200 / TOKENS)
    for network in set(get_args(Network)) - {"snn", "ann"}:
        assert found.energy("prefill", "paper", network) is None
    assert found.break_even("prefill", "paper", "ann") == pytest.approx(4.6 / 0.9)
    assert found.break_even("prefill", "paper", "twin") is None


def test_graded_spikes_count_as_many_in_the_accounting_of_papers():
    site = replace(SITE, spikes=30, additions=0, graded_multiply_adds=120)
    found = estimate(site=site)
    assert found.energy("prefill", "paper", "snn") == pytest.approx(0.9 * 30 * 10 / TOKENS)
    bill = {line.item: line for line in found.bill("prefill", "snn_int8")}
    assert bill["graded multiply-adds"].price == pytest.approx(0.225) and bill["additions"].number == 0


@pytest.mark.parametrize(("reuse", "spiking", "dense"), [("none", 120, 200), ("time", 80, 200), ("pass", 30, 40)])
def test_reuse(reuse, spiking, dense):
    found = estimate(reuse=reuse)
    words = {
        n: {line.item: line.number * TOKENS for line in found.bill("prefill", n)}["weights"] for n in ("snn", "ann")
    }
    assert words == {"snn": pytest.approx(spiking), "ann": pytest.approx(dense)}
    assert found.bill("prefill", "ann_zeros_skipped")[1].number * TOKENS == pytest.approx(
        40 if reuse == "pass" else 150
    )


def test_half_precision():
    found = estimate(precision="fp16")
    rest = 70 * 1.5 + 6 * 1.1 + 9 * 0.4 + 7 * 18.4
    assert found.energy("prefill", "compute", "ann") == pytest.approx((200 * 1.5 + rest) / TOKENS)
    assert found.energy("prefill", "compute", "snn") == pytest.approx(
        (120 * 0.4 + 160 * 0.8 + 12 * 0.4 + rest) / TOKENS
    )


@given(
    st.sampled_from(["45nm", "45nm-dram"]), st.sampled_from(get_args(Reuse)), st.sampled_from(list(BASELINES)),
    st.sampled_from(["compute", "memory"]),
)  # fmt: skip
def test_at_the_break_even_both_take_the_same(prices, reuse, baseline, accounting):
    found = estimate(prices, reuse)
    at = found.break_even("prefill", accounting, baseline)
    factor = at / found.spikes_per_neuron("prefill")
    scaled = copy.copy(SITE)
    for name in (
        "spikes",
        "events",
        "event_bits",
        "additions",
        "weight_words",
        "weight_words_time",
        "weight_words_pass",
        "spike_bits",
    ):
        setattr(scaled, name, getattr(SITE, name) * factor)
    then = estimate(prices, reuse, site=scaled)
    # The network at that rate, counted anew; sums of floats in another order.
    own, theirs = (then.energy("prefill", accounting, n) for n in (BASELINES[baseline], baseline))
    if not baseline.startswith("twin_zeros"):
        assert own == pytest.approx(theirs, rel=1e-9)
    assert found.ratio("prefill", accounting, baseline) == pytest.approx(
        found.energy("prefill", accounting, BASELINES[baseline]) / theirs, rel=1e-9
    )
    assert (found.ratio("prefill", accounting, baseline) < 1) == (found.spikes_per_neuron("prefill") < at)


def test_what_has_no_price_is_not_free():
    loihi = estimate("loihi")
    assert loihi.energy("prefill", "memory", "snn") == pytest.approx((120 * 23.6 + 160 * 81 + 12 * 1.7) / TOKENS)
    rest = {
        "other multiply-adds", "multiplications", "float additions", "evaluations", "other operands",
        "other accumulators",
    }  # fmt: skip
    assert set(loihi.unpriced("prefill", "memory", "snn")) == rest
    assert loihi.unpriced("prefill", "compute", "ann")["multiply-adds after the sites"] == 200 / TOKENS
    for baseline in BASELINES:
        assert loihi.ratio("prefill", "memory", baseline) is None
        assert loihi.break_even("prefill", "memory", baseline) is None
    chip = estimate("22nm")
    assert chip.unpriced("prefill", "memory", "snn_int8").keys() == rest | {
        "weights", "membrane potentials", "input currents", "accumulators",
    }  # fmt: skip


def test_a_remainder_without_a_price_cancels():
    found = estimate()
    constants = {name: value for name, value in found.prices.constants.items() if name != "evaluation"}
    without = replace(found, hardware=Hardware(replace(found.prices, constants=constants)))
    assert without.ratio("prefill", "compute", "ann") is None
    assert without.break_even("prefill", "compute", "ann") == pytest.approx(
        found.break_even("prefill", "compute", "ann")
    )


def test_rows_are_estimates():
    rows = list(estimate().measurements(model="tiny"))
    assert {row.origin for row in rows} == {"estimated"}
    assert {row.quantity for row in rows} == {"energy", "energy_ratio", "break_even"}
    energies = [row for row in rows if row.quantity == "energy"]
    assert len(energies) == 2 + 6 + 6 and {row.unit for row in energies} == {"pJ/token"}
    assert all(row.conditions["prices"] == "45nm" and row.conditions["model"] == "tiny" for row in rows)
    assert len([row for row in rows if row.quantity == "break_even"]) == 1 + 4 + 4


@pytest.mark.parametrize("coverage", ["mlp", "linear", "full"])
def test_a_model_from_end_to_end(coverage):
    model, batch = converted(coverage=coverage, neuron="signed_if"), FAMILIES["gpt2"].batch()
    told = []
    found = estimate_energy(model, [batch], new_tokens=3, progress=lambda *part: told.append(part))
    assert (
        told == [(f"counting operations, {n}", 1, 1) for n in ("snn", "ann")]
        and model.network == "snn"
        and set(found.levels.values()) <= {5, 9}
    )
    assert found.spiking.tokens == found.dense.tokens == {"prefill": 27, "decode": 6}
    for phase in ("prefill", "decode"):
        for accounting in ACCOUNTINGS:
            for network in get_args(Network):
                value = found.energy(phase, accounting, network)
                assert (value is None) == (accounting == "paper" and network not in ("snn", "ann"))
                assert value is None or value > 0
        # The twin computes with integers whatever spikes drive; in float both have the same left.
        rest = {
            n: next(line.number for line in found.bill(phase, n) if line.item == "other multiply-adds")
            for n in ("snn_int8", "twin", "ann")
        }
        assert rest["snn_int8"] == pytest.approx(rest["twin"])
        assert (rest["twin"] < rest["ann"]) == (coverage == "full")


@pytest.mark.parametrize("schedule", ["layerwise", "online"])
def test_the_dense_network_does_not_depend_on_what_spikes(schedule):
    batch = FAMILIES["llama"].batch()
    bills = []
    for coverage in ("mlp", "linear"):
        model = converted("llama", coverage=coverage, schedule=schedule, neuron="signed_if")
        spiking, dense = count_both(model, [batch])
        found = Estimate(spiking, dense, {site.path: 9 for site in model.sites}, Hardware(load_prices("45nm")))
        bills.append(found.energy("prefill", "compute", "ann"))
    assert bills[0] == pytest.approx(bills[1], rel=1e-12)  # the same numbers, summed in another order


def test_levels():
    for options, expected in (({}, {9}), ({"coverage": "full"}, {9, 5}), ({"neuron": "phase"}, {31})):
        assert set(levels_of(converted(**{"neuron": "signed_if", **options})).values()) == expected
    assert set(levels_of(converted("opt", coverage="mlp", neuron="signed_if")).values()) == {5}


def test_what_is_refused():
    model, batch = converted(coverage="mlp"), FAMILIES["gpt2"].batch()
    with pytest.raises(ValueError, match="reuse is 'ever'; choose one of none, time, pass"):
        estimate_energy(model, [batch], reuse="ever")
    with pytest.raises(ValueError, match="precision is 'int8'; choose one of fp32, fp16"):
        estimate_energy(model, [batch], precision="int8")
    online = converted(coverage="mlp", neuron="signed_if", schedule="online")
    with pytest.raises(ValueError, match="order is 'window', but online a neuron's spikes are spread over time"):
        estimate_energy(online, [batch], order="window")
    with pytest.raises(ValueError, match="order is 'column'; choose one of row, window, output"):
        estimate_energy(model, [batch], order="column")
    with pytest.raises(ValueError, match="accumulator is 64; choose one of 8, 16, 32"):
        estimate_energy(model, [batch], accumulator=64)
    with pytest.raises(ValueError, match="no batches to run on"):
        estimate_energy(model, [])
    with pytest.raises(ValueError, match="no cost model 'none'"):
        estimate_energy(model, [batch], prices="none")
    with pytest.raises(ValueError, match=r"is not converted; call fas\.convert first"):
        estimate_energy(FAMILIES["gpt2"].build(), [batch])
    assert torch.equal(batch["input_ids"], FAMILIES["gpt2"].batch()["input_ids"])
