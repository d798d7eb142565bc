"""The neurons of one site by themselves: our kernels, the plain loop over T, SpikingJelly's IF node, and the limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config

from benchmarks.suite.absent import AbsentError
from benchmarks.suite.interleave import Prepare, Timing, interleaved
from benchmarks.suite.reference import PlainNeurons
from benchmarks.suite.roofline import Roofline, synchroniser
from benchmarks.suite.sizes import from_config
from benchmarks.suite.spikingjelly import JellyNeurons
from fas.conversion import convert
from fas.errors import FASError
from fas.layers.population import Form, Population
from fas.methods.fas import FAS
from fas.surgery.replace import spiking_layers
from fas.types import Progress

LOOP = "loop"
_KERNELS = ("torch", "cpu", "triton")
# What each execution has to read and to write at least, in activations of one step: (not ×T, ×T).
_TRAFFIC = {"online": (0, 2), "online-spikes": (0, 1.25), "stepped": (1, 1), "collapsed": (2, 0)}


@dataclass(frozen=True)
class Kernels:
    """Timings of one site.

    Attributes:
        timings: by what ran; ``loop`` is the plain loop.
        limits: seconds that reading the input and writing the output once take, by what ran.
        absent: why something did not run.
    """

    timings: dict[str, Timing]
    limits: dict[str, float]
    absent: dict[str, str]


def measure(
    roofline: Roofline,
    *,
    timesteps: int = 8,
    rows: int = 4096,
    channels: int = 3072,
    rounds: int = 5,
    patience: float = 10.0,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> Kernels:
    """Time signed IF neurons on float32 input of every step, [T, rows, channels], normal with σ = θ/2.

    The online rows and the loop map all steps to all steps, ``online-spikes`` to a byte for each; ``stepped`` maps
    one activation to all steps, ``collapsed`` one to one.

    Args:
        roofline: bandwidth of the machine.
        timesteps: T.
        rows: tokens.
        channels: neurons.
        rounds: samples of each.
        patience: see ``interleaved``.
        device: where; the CPU if None.
        progress: told what runs.
    """
    device = torch.device("cpu") if device is None else device
    model, population = _site(timesteps, channels, device)
    generator = torch.Generator().manual_seed(0)
    currents = (torch.randn(timesteps * rows, channels, generator=generator) / 2).to(device)
    even = currents[:rows]
    loop = PlainNeurons(population, timesteps)
    programs: dict[str, Prepare] = {LOOP: lambda: lambda: loop(currents)}
    for name, x in (("online", currents), ("online-spikes", currents), ("stepped", even), ("collapsed", even)):
        programs[name] = _ours(model, population, name, x, timesteps)
    absent = {}
    # Online, each kind of kernels by itself as well: the others run what is fastest here.
    for kernels in _KERNELS:
        name = f"online-{kernels}"
        program = _ours(model, population, "online", currents, timesteps, kernels)
        try:
            with torch.inference_mode():
                program()()
        except FASError as error:
            absent[name] = str(error)
            continue
        programs[name] = program
    try:
        node = JellyNeurons(population, timesteps)
        programs["spikingjelly-if"] = lambda: lambda: node(currents)
    except AbsentError as error:
        absent["spikingjelly-if"] = str(error)
    timings = interleaved(
        programs, rounds=rounds, patience=patience, progress=progress, synchronise=synchroniser(device)
    )
    size = rows * channels * currents.element_size()
    limits = {name: (once + each * timesteps) * size / roofline.copy for name, (once, each) in _TRAFFIC.items()}
    # Whatever maps all steps to all steps has the limit of the online row.
    everything = {name: limits.get(name, limits["online"]) for name in timings}
    return Kernels(timings, everything, absent)


def _site(timesteps: int, channels: int, device: torch.device) -> tuple[Any, Population]:
    config = GPT2Config(
        vocab_size=16, n_positions=16, n_embd=16, n_layer=1, n_head=1, n_inner=channels,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = from_config(config).to(device)
    convert(model, FAS(timesteps=timesteps, coverage="mlp", neuron="signed_if"))
    population = spiking_layers(model)[model.sites[0].path].population
    ones = torch.ones(channels, device=device)
    population.set(ones, 0 * ones, ones / 2)
    return model, population


def _ours(model: Any, population: Population, name: str, x: Tensor, timesteps: int, kernels: str = "auto") -> Prepare:
    online = name.startswith("online")
    form: Form = "spikes" if name == "online-spikes" else "values"

    def run() -> Tensor:
        if not online:
            return population(x, form)
        with model.simulation.running(range(1, timesteps + 1)):
            return population(x, form)

    def prepare() -> Any:
        model.network = "snn"
        model.schedule = "online" if online else "layerwise"
        model.operators = "instant"
        if not online:
            model.execution = name
        model.kernels = kernels
        return run

    return prepare
