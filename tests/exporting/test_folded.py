from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import FAMILIES

import fas
from fas import registry
from fas.errors import FASError
from fas.exporting.blocks import Affine, Block, blocks
from fas.exporting.folded import fold
from fas.neurons.clipped_count import ClippedCount
from fas.neurons.outlier_aware import OutlierAware
from fas.neurons.phase import Phase
from fas.neurons.signed_if import SignedIF
from fas.neurons.soft_reset_if import SoftResetIF
from fas.neurons.ternary_phase import TernaryPhase
from fas.types import Neuron, RateNeuron

# Multiples of 1/64: every sum below is exact in float32, and ties occur.
GRAIN = 64
EVEN = st.lists(st.tuples(st.integers(-2 * GRAIN, 2 * GRAIN), st.integers(0, GRAIN - 1)), min_size=1, max_size=7)


def unit_block(neuron: Neuron, v_init: torch.Tensor, timesteps: int, *, even: bool = True) -> Block:
    many = len(v_init)
    layer = Affine("layer", torch.eye(many), torch.zeros(many))
    return Block("site", neuron, timesteps, even, torch.zeros(many), v_init, torch.zeros(many), (layer,))


def by_definition(neuron: RateNeuron, drive: torch.Tensor, v_init: torch.Tensor) -> torch.Tensor:
    """The neuron's own step, one after the other; drive [T, N, C] in thresholds."""
    potential, count, trains = v_init.expand_as(drive[0]), torch.zeros_like(drive[0]), []
    for current in drive:
        spikes, potential = neuron.step(current, potential, count, torch.tensor(1.0), len(drive))
        count = count + spikes
        trains.append(spikes)
    return torch.stack(trains)


@given(channels=EVEN, timesteps=st.integers(1, 16))
def test_two_plain_neurons_are_one_signed_neuron_for_even_input(channels: Any, timesteps: int) -> None:
    numbers = torch.tensor(channels, dtype=torch.float32).T / GRAIN
    drive, v_init = numbers[0].expand(timesteps, 1, -1), numbers[1]
    block = unit_block(SignedIF(), v_init, timesteps)
    folded = fold(block)
    plain, output = folded.run(torch.cat([drive, -drive], -1))
    wanted = by_definition(SignedIF(), drive, v_init)
    assert folded.mirrored and torch.equal(plain.to(torch.uint8), folded.fired(wanted))
    assert torch.equal(output, wanted)


@given(channels=EVEN, timesteps=st.integers(1, 16))
def test_a_signed_neuron_at_a_site_without_sign_is_plain(channels: Any, timesteps: int) -> None:
    numbers = torch.tensor(channels, dtype=torch.float32).T / GRAIN
    drive, v_init = numbers[0].expand(timesteps, 1, -1), numbers[1]
    folded = fold(unit_block(SignedIF(signed=False), v_init, timesteps))
    assert not folded.mirrored
    assert torch.equal(folded.run(drive)[0], by_definition(SignedIF(signed=False), drive, v_init))


@given(
    steps=st.lists(st.lists(st.integers(-2 * GRAIN, 2 * GRAIN), min_size=3, max_size=3), min_size=1, max_size=12),
    start=st.lists(st.integers(0, GRAIN - 1), min_size=3, max_size=3),
)
def test_a_plain_neuron_is_itself_for_any_input(steps: Any, start: Any) -> None:
    drive = torch.tensor(steps, dtype=torch.float32).unsqueeze(1) / GRAIN
    v_init = torch.tensor(start) / GRAIN
    folded = fold(unit_block(SoftResetIF(), v_init, len(steps), even=False))
    assert torch.equal(folded.run(drive)[0], by_definition(SoftResetIF(), drive, v_init))


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"neuron": "signed_if"}),
    ("gpt2", {"neuron": "signed_if", "granularity": "tensor", "centred": False}),
    ("llama", {"neuron": "signed_if"}),
    ("opt", {"neuron": "signed_if"}),
    ("opt", {"coverage": "mlp", "neuron": "soft_reset_if"}),
    ("opt", {"coverage": "mlp", "neuron": "soft_reset_if", "schedule": "online"}),
    ("opt", {"coverage": "mlp", "neuron": "soft_reset_if", "schedule": "online", "operators": "instant"}),
]


@pytest.mark.parametrize(("family", "options"), OPTIONS)
def test_folded_blocks_send_the_spikes_of_the_model(family: str, options: dict[str, Any]) -> None:
    chosen = FAMILIES[family]
    model = fas.convert(chosen.build(), fas.FAS(timesteps=6, **options), calibration=[chosen.batch()])
    for block in blocks(model, chosen.batch(seed=3)):
        trace, folded = block.trace, fold(block)
        assert trace is not None
        received = folded.received(block)
        spikes, output = folded.run(received)
        differing = spikes.to(torch.uint8) != folded.fired(trace.spikes)
        assert not differing.any(), f"{block.path}: {int(differing.sum())}"
        output = output.mean(0, keepdim=True) if block.even else output
        # float32: products over up to 96 neurons in another order, differences of running means online.
        torch.testing.assert_close(output, trace.output, rtol=1e-3, atol=1e-4 * float(trace.output.abs().max()))


@pytest.mark.parametrize(
    ("neuron", "even", "problem"),
    [
        (Phase(), True, "Phase sends the digits of its count.*neuron='signed_if' or 'soft_reset_if'"),
        (TernaryPhase(), True, "TernaryPhase sends the digits"),
        (OutlierAware(), True, "OutlierAware sends the digits"),
        (ClippedCount(), True, "ClippedCount sends several spikes a step.*neuron='signed_if'"),
        (SignedIF(), False, r"SignedIF takes spikes back while its input changes.*model\.schedule = 'layerwise'"),
        (SignedIF(signed=False), False, "SignedIF takes spikes back"),
    ],
)
def test_what_plain_neurons_cannot_say_is_refused(neuron: Neuron, even: bool, problem: str) -> None:
    with pytest.raises(FASError, match=f"site site: {problem}"):
        fold(unit_block(neuron, torch.full((3,), 0.5), 4, even=even))


def test_every_neuron_is_said_or_refused() -> None:
    for name in registry.available("neurons"):
        neuron = registry.load("neurons", name)()
        try:
            fold(unit_block(neuron, torch.full((3,), 0.5), 4))
        except FASError as error:
            assert type(neuron).__name__ in str(error)


def test_two_opposite_neurons_are_not_one_for_uneven_input() -> None:
    drive = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1)
    v_init = torch.tensor([0.5])
    folded = fold(unit_block(SignedIF(), v_init, 3))
    _, output = folded.run(torch.cat([drive, -drive], -1))
    # The signed neuron takes its spike back at the second step; the negative one of the pair has not yet any reason.
    assert not torch.equal(output, by_definition(SignedIF(), drive, v_init))
