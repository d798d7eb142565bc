from __future__ import annotations

import pytest
import torch
from benchmarks.suite import neuron_kernel
from benchmarks.suite.roofline import Roofline

MACHINE = Roofline(read=1e9, copy=1e9, flops=1e9)


def test_every_execution_is_timed_beside_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAS_SPIKINGJELLY", raising=False)
    found = neuron_kernel.measure(MACHINE, timesteps=3, rows=5, channels=7, rounds=1)
    assert {"loop", "online", "online-spikes", "stepped", "collapsed"} <= found.timings.keys() == found.limits.keys()
    every = {"loop", "online", "online-torch", "online-cpu", "online-triton", "stepped", "collapsed", "spikingjelly-if"}
    assert found.timings.keys() | found.absent.keys() <= every | {"online-spikes"}
    assert found.absent["spikingjelly-if"].startswith("spikingjelly is not installed")
    # 140 bytes of activations a step, at 1 GB/s: all steps in and out, one in and all out, one in and one out.
    assert found.limits["loop"] == found.limits["online"] == pytest.approx(6 * 140e-9)
    # A quarter of that is written where an answer is a byte.
    assert found.limits["online-spikes"] == pytest.approx(3 * 1.25 * 140e-9)
    assert found.limits["stepped"] == pytest.approx(4 * 140e-9)
    assert found.limits["collapsed"] == pytest.approx(2 * 140e-9)


def test_what_is_timed_computes_the_same_spikes() -> None:
    model, population = neuron_kernel._site(4, 7, torch.device("cpu"))
    # Sixteenths: sums are exact, and ties with the threshold occur.
    x = (torch.randn(4 * 5, 7) * 8).round() / 16
    loop = neuron_kernel.PlainNeurons(population, 4)
    online = neuron_kernel._ours(model, population, "online", x, 4)()()
    # ln θ = 0, so that θ = 1 exactly.
    assert torch.equal(online, loop(x)) and 0.05 < online.abs().mean() < 0.95
    spikes = neuron_kernel._ours(model, population, "online-spikes", x, 4)()()
    assert spikes.dtype == torch.int8 and torch.equal(spikes.flatten(0, 1).float(), online)
    even = x[:5]
    stepped = neuron_kernel._ours(model, population, "stepped", even, 4)()()
    collapsed = neuron_kernel._ours(model, population, "collapsed", even, 4)()()
    assert stepped.shape == (4, 5, 7) and torch.equal(stepped.mean(0), collapsed)
