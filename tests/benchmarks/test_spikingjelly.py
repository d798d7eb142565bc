from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarks.suite import spikingjelly
from benchmarks.suite.absent import AbsentError
from benchmarks.suite.reference import PlainNeurons
from benchmarks.suite.stock import Stock
from benchmarks.suite.subjects import SUBJECTS
from tiny_models import FAMILIES

from fas.layers.population import Population
from fas.layers.simulation import Simulation
from fas.methods.fas import FAS
from fas.neurons.soft_reset_if import SoftResetIF

# What our neurons need of the package: a node that integrates, fires and subtracts.
_NODE = """
import torch

class IFNode:
    def __init__(self, v_threshold, v_reset, step_mode):
        assert v_threshold == 1.0 and v_reset is None and step_mode == "m"

    def reset(self):
        self.v = 0.0

    def __call__(self, x):
        sent = []
        for current in x:
            self.v = self.v + current
            sent.append((self.v >= 1.0).to(x.dtype))
            self.v = self.v - sent[-1]
        return torch.stack(sent)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package in the place of SpikingJelly, found through the variable."""
    package = tmp_path / "spikingjelly" / "activation_based"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "neuron.py").write_text(_NODE)
    (package / "ann2snn.py").write_text("import a_package_that_nobody_has\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "spikingjelly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv(spikingjelly.VARIABLE, str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "spikingjelly"]:
        del sys.modules[name]


def same_spikes() -> None:
    population = Population("site", 5, SoftResetIF(), Simulation(timesteps=6)).double()
    # Powers of two: dividing by the threshold is exact, and so are all sums.
    population.set(torch.tensor([0.5, 1.0, 2.0, 1.0, 0.25]), torch.zeros(5), torch.full((5,), 0.5))
    x = torch.randint(-8, 16, (6 * 3, 5)).double() / 8
    theirs = spikingjelly.JellyNeurons(population, 6)
    sent = theirs(x)
    assert torch.equal(sent / population.threshold, PlainNeurons(population, 6)(x) / population.threshold)
    assert 0.1 < (sent > 0).double().mean() < 0.9
    # Again from the initial potential at the second call.
    assert torch.equal(theirs(x.clone()), sent)


def test_its_node_sends_the_spikes_of_our_binary_neuron(stand_in: Path) -> None:
    same_spikes()


def test_a_network_of_its_nodes(stand_in: Path, stock: Stock) -> None:
    contender = SUBJECTS["spikingjelly-if"].make(stock, "spikingjelly-if")
    with torch.inference_mode():
        logits = contender.prefill(torch.tensor([[1, 2, 3]]))().logits
    assert logits.shape == (1, 1, 100) and bool(logits.isfinite().all())


def test_a_folder_with_torchvision_is_refused(stand_in: Path) -> None:
    (stand_in / "torchvision").mkdir()
    with pytest.raises(AbsentError, match="torchvision"):
        spikingjelly.load("neuron")
    assert str(stand_in) not in sys.path


def test_its_recipe_takes_qwen2_only(stock: Stock) -> None:
    with pytest.raises(AbsentError, match="converts qwen2, this is gpt2"):
        SUBJECTS["spikingjelly-qwen2"].make(stock, "spikingjelly-qwen2")


@pytest.mark.slow
@pytest.mark.skipif(spikingjelly.VARIABLE not in os.environ, reason="no SpikingJelly was named")
def test_the_real_package() -> None:
    same_spikes()
    stock = Stock("tiny", FAS(timesteps=4, neuron="signed_if"), tokens=64, source=FAMILIES["qwen2"].build())
    contender = SUBJECTS["spikingjelly-qwen2"].make(stock, "spikingjelly-qwen2")
    with torch.inference_mode():
        assert contender.decode(torch.tensor([[1, 2, 3]]), 4)()().shape == (1, 1)
