"""Blocks as modules of snnTorch and SpikingJelly, and back; each skipped where it cannot be imported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from simulators import need
from tiny_models import FAMILIES
from torch import nn

import fas
from fas.errors import FASError, MissingExtraError
from fas.exporting.blocks import Block, blocks
from fas.exporting.folded import fold
from fas.exporting.torch_blocks import from_snntorch, from_spikingjelly, split, to_snntorch, to_spikingjelly
from fas.neurons.phase import Phase
from fas.neurons.soft_reset_if import SoftResetIF

pytestmark = pytest.mark.filterwarnings("ignore")  # other projects' deprecations

BRIDGES: dict[str, tuple[str, Callable[..., Any], Callable[..., Block]]] = {
    "snntorch": ("snntorch", to_snntorch, from_snntorch),
    "spikingjelly": ("spikingjelly.activation_based.neuron", to_spikingjelly, from_spikingjelly),
}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {}),
    ("opt", {"coverage": "mlp"}),
    ("opt", {"coverage": "mlp", "neuron": "soft_reset_if", "schedule": "online"}),
]


@pytest.fixture(params=BRIDGES)
def bridge(request: pytest.FixtureRequest) -> tuple[Callable[..., Any], Callable[..., Block]]:
    package, to, back = BRIDGES[request.param]
    need(package)
    return to, back


@pytest.mark.parametrize(("family", "options"), OPTIONS)
def test_the_same_spikes_there_and_back(bridge: Any, family: str, options: dict[str, Any]) -> None:
    to, back = bridge
    chosen = FAMILIES[family]
    model = fas.convert(chosen.build(), fas.FAS(timesteps=5, **options), calibration=[chosen.batch()])
    for block in blocks(model, chosen.batch(2, 5, seed=3)):
        folded, module = fold(block), to(block)
        assert block.trace is not None
        received, wanted = folded.received(block), folded.fired(block.trace.spikes)
        with torch.no_grad():
            spikes, output = module(received)
            again = module(received)[0]
        # A call is a whole window: nothing is left over from the one before.
        assert torch.equal(spikes.to(torch.uint8), wanted) and torch.equal(again, spikes)
        torch.testing.assert_close(output, folded.run(received)[1], rtol=1e-5, atol=1e-5)
        returned = fold(back(module, block.timesteps, even=block.even))
        assert torch.equal(returned.run(received)[0].to(torch.uint8), wanted)
        assert torch.equal(returned.weight, folded.weight) and torch.equal(returned.bias, folded.bias)
        # snnTorch's potentials start 2^-22 higher, which is taken off again; the sum rounds.
        torch.testing.assert_close(returned.v_init, folded.v_init, rtol=0, atol=2.0**-24)


def test_ties_fire(bridge: Any) -> None:
    to, _ = bridge
    chosen = FAMILIES["opt"]
    options: dict[str, Any] = {"coverage": "mlp", "neuron": "soft_reset_if"}
    model = fas.convert(chosen.build(), fas.FAS(timesteps=4, **options), calibration=[chosen.batch()])
    block = blocks(model)[0]
    # A drive of 1/4 from 1/2 reaches the threshold itself at the second step, and every fourth one from there.
    unit = Block(
        block.path, block.neuron, 8, True, torch.zeros(48), torch.full((48,), 0.5), torch.zeros(48), block.layers
    )
    with torch.no_grad():
        spikes, _ = to(unit)(torch.full((8, 1, 48), 0.25))
    assert spikes[:, 0, 0].tolist() == [0, 1, 0, 0, 0, 1, 0, 0]


def test_modules_of_other_people() -> None:
    (package,) = need("snntorch")
    torch.manual_seed(0)
    own = nn.Sequential(nn.Linear(3, 5), package.Leaky(beta=1.0, threshold=0.7), nn.Linear(5, 2))
    block = from_snntorch(own, 6)
    received = torch.randn(6, 4, 3)
    potential, trains = torch.zeros(4, 5), []
    with torch.no_grad():
        for step in received:
            spikes, potential = own[1](own[0](step), potential)
            trains.append(spikes)
        wanted = torch.stack(trains)
        spikes, output = fold(block).run(received)
        assert torch.equal(spikes, wanted) and wanted.any()
        torch.testing.assert_close(output, own[2](wanted), rtol=1e-5, atol=1e-6)
    with pytest.raises(FASError, match=r"Leaky has beta 0\.9"):
        from_snntorch(nn.Sequential(package.Leaky(beta=0.9), nn.Linear(5, 2)), 6)
    with pytest.raises(FASError, match="reset_mechanism 'zero'"):
        from_snntorch(nn.Sequential(package.Leaky(beta=1.0, reset_mechanism="zero"), nn.Linear(5, 2)), 6)
    with pytest.raises(FASError, match=r"a block is \(Linear,\) Leaky, Linear; the module has Linear, Linear"):
        from_snntorch(nn.Sequential(nn.Linear(5, 2), nn.Linear(2, 2)), 6)


def test_jelly_modules_of_other_people() -> None:
    neuron, layer = need("spikingjelly.activation_based.neuron", "spikingjelly.activation_based.layer")
    torch.manual_seed(0)
    own = nn.Sequential(
        layer.Linear(3, 5, step_mode="m"), neuron.IFNode(v_threshold=0.7, v_reset=None, step_mode="m"),
        layer.Linear(5, 2, step_mode="m"),
    )  # fmt: skip
    block = from_spikingjelly(own, 6)
    received = torch.randn(6, 4, 3)
    with torch.no_grad():
        wanted = own[1](own[0](received))
        spikes, output = fold(block).run(received)
        assert torch.equal(spikes, wanted) and wanted.any()
        torch.testing.assert_close(output, own[2](wanted), rtol=1e-5, atol=1e-6)
    with pytest.raises(FASError, match="the IFNode resets to 0"):
        from_spikingjelly(nn.Sequential(neuron.IFNode(), layer.Linear(5, 2)), 6)


def test_parts_in_another_order_are_refused() -> None:
    with pytest.raises(FASError, match=r"a block is \(Linear,\) ReLU, Linear; the module has nothing"):
        split(nn.Sequential(), nn.ReLU, nn.ReLU)
    with pytest.raises(FASError, match="the module has Linear, ReLU"):
        split(nn.Sequential(nn.Linear(1, 1), nn.ReLU()), nn.ReLU, nn.ReLU)
    parts = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 3))
    front, neurons, behind = split(parts, nn.ReLU, nn.ReLU)
    assert front is not None and front.in_features == 1 and behind.out_features == 3 and isinstance(neurons, nn.ReLU)


@pytest.mark.parametrize("name", BRIDGES)
def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    package, to, _ = BRIDGES[name]
    monkeypatch.setitem(sys.modules, package.partition(".")[0], None)
    for part in [module for module in sys.modules if module.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, part)
    one = torch.zeros(3)
    with pytest.raises(MissingExtraError, match=f"pip install --no-deps {name}"):
        to(Block("site", SoftResetIF(), 4, True, one, one + 0.5, one, ()))


def test_digits_are_refused_by_every_bridge(bridge: Any) -> None:
    to, _ = bridge
    one = torch.zeros(3)
    with pytest.raises(FASError, match="Phase sends the digits"):
        to(Block("site", Phase(), 4, True, one, one + 0.5, one, ()))
