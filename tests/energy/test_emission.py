"""One call of a site against plain loops over its spikes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from neuron_variants import every

from fas.energy.emission import Code, Emission, bits
from fas.energy.inventory import alphabet
from fas.energy.operations import Operations
from fas.layers.simulation import Simulation
from fas.neurons.clipped_count import ClippedCount
from fas.neurons.phase import Phase
from fas.neurons.signed_if import SignedIF
from fas.neurons.soft_reset_if import SoftResetIF
from fas.neurons.ternary_phase import TernaryPhase
from fas.types import RateNeuron

KINDS = ("additions", "shift_additions", "graded_multiply_adds")


@st.composite
def trains(draw):
    shape = [draw(st.integers(1, 4)) for _ in range(3)] + [draw(st.integers(1, 7))]
    kind = draw(st.sampled_from(KINDS))
    most = 5 if kind == "graded_multiply_adds" else 1
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    silence = draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    spikes = torch.randint(1, most + 1, shape, generator=generator).float()
    return spikes * (torch.rand(shape, generator=generator) >= silence), kind


@given(trains(), st.integers(1, 9), st.integers(0, 3))
def test_everything_equals_a_loop_over_spikes(found, fan_out, payload):
    spikes, kind = found
    steps, rows, positions, channels = spikes.shape
    counted = Operations()
    emission = Emission(spikes, Code(kind, payload), steps)
    emission.sent(counted, channels)
    dense = rows * positions * channels * fan_out
    emission.caused(counted, fan_out, addresses=channels, words=None, dense=dense)

    expected = Operations()
    rows_of_weights = set()
    for row in range(rows):
        for position in range(positions):
            for channel in range(channels):
                expected.windows += 1
                fired = False
                for step in range(steps):
                    expected.membrane_updates += 1
                    size = int(spikes[step, row, position, channel])
                    expected.spikes += size
                    if size:
                        fired = True
                        expected.events += 1
                        expected.event_bits += math.ceil(math.log2(channels)) + payload
                        for _ in range(fan_out):
                            setattr(expected, kind, getattr(expected, kind) + 1)
                            expected.weight_words += 1
                for _ in range(fan_out):
                    expected.dense_multiply_adds += 1
                    if fired:
                        expected.weight_words_time += 1
                        expected.nonzero_multiply_adds += 1
                if fired:
                    rows_of_weights.add(channel)
    expected.weight_words_pass = len(rows_of_weights) * fan_out
    forms = spikes_in_three_forms(spikes, fan_out, payload)
    assert (counted.spike_bits, counted.map_bits) in forms.values()
    assert counted.spike_bits + counted.map_bits == min(map(sum, forms.values()))
    assert replace(counted, spike_bits=0, map_bits=0) == expected


def spikes_in_three_forms(spikes, fan_out, payload):
    """Bits that grow with the spikes and bits that do not, read once for every output of every position."""
    steps, rows, positions, channels = spikes.shape
    forms = {"list": [0, 0], "map": [0, 0], "map of those that fire": [0, 0]}
    for row, position, _ in itertools.product(range(rows), range(positions), range(fan_out)):
        for channel in range(channels):
            train = spikes[:, row, position, channel]
            forms["map of those that fire"][1] += 1
            for step in range(steps):
                forms["map"][1] += 1 + payload
                forms["map of those that fire"][0] += (1 + payload) * bool(train.any())
                forms["list"][0] += (math.ceil(math.log2(channels)) + payload) * bool(train[step])
    return {name: tuple(form) for name, form in forms.items()}


def test_where_few_neurons_fire_often_a_map_of_theirs_is_the_shortest():
    spikes, counted = torch.zeros(8, 1, 1, 8), Operations()
    spikes[..., 2] = 1
    Emission(spikes, Code("additions", 0), 8).caused(counted, 3, addresses=8, words=None, dense=3 * 8)
    forms = spikes_in_three_forms(spikes, 3, 0)
    assert forms == {"list": (72, 0), "map": (0, 192), "map of those that fire": (24, 24)}
    assert (counted.spike_bits, counted.map_bits) == (24, 24)


@given(trains(), st.integers(1, 9), st.data())
def test_a_window_in_several_calls_counts_as_one(found, fan_out, data):
    spikes, kind = found
    whole, parts = Operations(), Operations()
    dense = spikes[0].numel() * fan_out
    Emission(spikes, Code(kind, 1), len(spikes)).sent(whole, 5)
    Emission(spikes, Code(kind, 1), len(spikes)).caused(whole, fan_out, addresses=5, words=3, dense=dense)
    cut = data.draw(st.integers(0, len(spikes) - 1))
    before = None
    for part in (spikes[:cut], spikes[cut:]) if cut else (spikes,):
        emission = Emission(part, Code(kind, 1), len(part), before)
        emission.sent(parts, 5)
        emission.caused(parts, fan_out, addresses=5, words=0 if before is None and cut else 3, dense=dense)
        before = emission.fired
    # Each call takes the shortest form of its own spikes.
    parts.spike_bits, parts.map_bits = whole.spike_bits, whole.map_bits
    assert parts == whole


@given(trains(), st.data())
def test_a_fan_out_per_neuron(found, data):
    spikes, kind = found
    size = spikes[0].shape
    fan_out = torch.randint(0, 5, size, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    counted = Operations()
    Emission(spikes, Code(kind, 0), len(spikes)).caused(counted, fan_out, addresses=3, words=2, dense=0)
    additions = sum(int(fan_out[place]) for step in spikes for place in map(tuple, step.nonzero().tolist()))
    assert getattr(counted, kind) == counted.weight_words == additions
    assert counted.weight_words_pass == 2


def test_a_part_of_the_positions():
    spikes = torch.arange(24.0).reshape(2, 1, 4, 3)
    part = Emission(spikes, Code("additions", 0), 2, torch.ones(1, 4, 3, dtype=torch.bool)).at(slice(3, None))
    assert torch.equal(part.spikes, spikes[:, :, 3:]) and part.before is not None and part.before.shape == (1, 1, 3)


@pytest.mark.parametrize(("values", "expected"), [(0, 0), (1, 0), (2, 1), (3, 2), (8, 3), (9, 4), (17, 5), (511, 9)])
def test_bits(values, expected):
    assert bits(values) == expected


@pytest.mark.parametrize(
    ("neuron", "schedule", "kind", "payload"),
    [
        (SoftResetIF(), "layerwise", "additions", 0),
        (SoftResetIF(), "online", "additions", 0),
        (SignedIF(signed=True), "layerwise", "additions", 1),
        # Even input never turns back; uneven input makes a neuron take spikes back.
        (SignedIF(signed=False), "layerwise", "additions", 0),
        (SignedIF(signed=False), "online", "additions", 1),
        (Phase(signed=True), "layerwise", "shift_additions", 1),
        (Phase(signed=False), "layerwise", "shift_additions", 0),
        (TernaryPhase(signed=True), "layerwise", "shift_additions", 1),
        # Its counts have no sign, its spikes do.
        (TernaryPhase(signed=False), "layerwise", "shift_additions", 1),
        # Counts −8 … 8: up to 16 at once, and a sign.
        (ClippedCount(signed=True), "layerwise", "graded_multiply_adds", 5),
        (ClippedCount(signed=False), "layerwise", "graded_multiply_adds", 3),
        (ClippedCount(signed=False), "online", "graded_multiply_adds", 4),
    ],
)
def test_codes(neuron, schedule, kind, payload):
    assert Code.of(neuron, 8, schedule) == Code(kind, payload)


def test_a_neuron_that_declares_nothing_is_described_as_the_general_case():
    class Burst(ClippedCount):
        """Signed spikes of up to three thresholds, as in examples/own_neuron.py."""

        emission = RateNeuron.emission

    assert Code.of(Burst(), 8, "online") == Code("graded_multiply_adds", 5)
    assert alphabet(Burst(), Simulation()) == "graded spikes"


@every
@pytest.mark.parametrize("schedule", ["layerwise", "online"])
def test_energy_and_inventory_say_the_same(neuron, schedule):
    words = {("additions", 0): "binary", ("additions", 1): "ternary"}
    words |= {("shift_additions", 0): "binary", ("shift_additions", 1): "ternary"}
    code = Code.of(neuron, 8, schedule)
    expected = words.get((code.kind, code.payload), "graded")
    assert alphabet(neuron, Simulation(schedule=schedule)) == f"{expected} spikes"
