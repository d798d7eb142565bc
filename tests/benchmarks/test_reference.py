"""The plain re-statement of the reference semantics: its spikes are those of the online schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmarks.suite.reference import PlainLinear, PlainNeurons, Reference
from hypothesis import given, settings
from hypothesis import strategies as st
from made import once
from tiny_models import FAMILIES
from torch import Tensor

import fas
from fas.layers.population import Population
from fas.layers.simulation import Simulation
from fas.neurons.signed_if import SignedIF
from fas.runtime.spiking import SpikingModel


@once
def converted(family: str, neuron: str = "signed_if", **options: Any) -> Any:
    """Return a calibrated model in float64: rounding then stays far from any threshold."""
    model = FAMILIES[family].build().double()
    return fas.convert(model, fas.FAS(neuron=neuron, **options), calibration=[FAMILIES[family].batch(4, 12)])


def spikes_of(reference: Reference, ids: Tensor) -> tuple[Any, dict[int, Tensor]]:
    """Run it and return its answer and the spikes [T, B, S, C] by neurons."""
    seen: dict[int, Tensor] = {}

    def look(module: Any, arguments: Any, output: Tensor) -> None:
        sent = (output.unflatten(0, (module.timesteps, -1)) - module.offset) / module.threshold
        # θ·s + μ − μ is off by rounding only, twelve digits below the spike.
        assert (sent - sent.round()).abs().max() < 1e-9
        seen[id(module)] = sent.round()

    for module in reference.modules():
        if isinstance(module, PlainNeurons):
            module.register_forward_hook(look)
    with torch.no_grad():
        return reference(ids), seen


@pytest.mark.parametrize("neuron", ["signed_if", "clipped_count"])
@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "bloom"])
def test_spikes_are_those_of_the_online_schedule_with_instant_operators(family: str, neuron: str) -> None:
    model = converted(family, neuron=neuron, timesteps=5)
    ids = FAMILIES[family].batch()["input_ids"]
    online = {"network": "snn", "schedule": "online", "operators": "instant"}
    ours = _trains(model, ids, **online)
    reference = Reference(model)
    answer, theirs = spikes_of(reference, ids)
    # Compared site by site, every spike of every step: equal, not close.
    for path, train in ours.items():
        plain = _neurons_at(reference, path)
        assert torch.equal(train, theirs[id(plain)].abs()), path
        assert 0.02 < train.mean() < 0.98
    with torch.no_grad(), model.simulation.using(**online):
        expected = model(input_ids=ids).logits
    # The same sums in another order.
    torch.testing.assert_close(answer.logits, expected, rtol=1e-9, atol=1e-9)


def test_the_converted_model_is_left_as_it_was() -> None:
    model = converted("gpt2")
    ids = FAMILIES["gpt2"].batch()["input_ids"]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        reference = Reference(model)
        reference(ids)
        # Bit-equal: nothing of it has been touched.
        assert torch.equal(model(input_ids=ids).logits, before)
    assert isinstance(model, SpikingModel)
    shared = {id(p) for p in model.parameters()}
    assert all(id(p) in shared for p in reference.parameters())


# Each example runs hundreds of steps in plain Python.
@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    timesteps=st.integers(1, 9),
    signed=st.booleans(),
    rows=st.integers(1, 3),
)
def test_the_loop_against_scalars(seed: int, timesteps: int, signed: bool, rows: int) -> None:
    """Every neuron by itself in plain Python, by the definition of the signed IF neuron."""
    generator = torch.Generator().manual_seed(seed)
    population = Population("site", 7, SignedIF(signed=signed), Simulation(timesteps=timesteps)).double()
    threshold = torch.rand(7, generator=generator, dtype=torch.float64) + 0.2
    offset = torch.randn(7, generator=generator, dtype=torch.float64) / 4
    v_init = torch.rand(7, generator=generator, dtype=torch.float64)
    population.set(threshold, offset, v_init)
    x = torch.randn(timesteps * rows, 7, generator=generator, dtype=torch.float64)
    got = PlainNeurons(population, timesteps)(x)
    # Parameters as stored: ln θ rounds.
    theta, mu, start = (t.detach().tolist() for t in (population.threshold, population.offset, population.v_init))
    for row in range(rows):
        for c in range(7):
            potential, count = start[c] * theta[c], 0
            for t in range(timesteps):
                potential += x[t * rows + row, c].item() - mu[c]
                spike = 0
                if potential >= theta[c] and count < timesteps:
                    spike = 1
                elif potential < 0 and count > (-timesteps if signed else 0):
                    spike = -1
                potential -= theta[c] * spike
                count += spike
                # One multiplication and one addition in the same order: equal to the last bit.
                assert got[t * rows + row, c].item() == theta[c] * spike + mu[c]


def test_neurons_without_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Phase has no step over time.*signed_if"):
        Reference(converted("gpt2", neuron="phase", timesteps=4))


def _trains(model: Any, ids: Tensor, **settings: Any) -> dict[str, Tensor]:
    with torch.no_grad(), model.simulation.using(**settings), fas.record(model, trains=True) as recording:
        model(input_ids=ids)
    return {path: site.trains[0].double() for path, site in recording.sites.items()}


def _neurons_at(reference: Reference, path: str) -> PlainNeurons:
    layer = reference.model.get_submodule(path)
    assert isinstance(layer, PlainLinear)
    return layer.neurons
