"""Running an exported file in other simulators, with the settings that the export states; each if it is there.

They want different versions of nir, and packages that must not be installed beside torch: they come from folders
of their own, ``pip install --no-deps --target DIR …`` and ``PYTHONPATH=DIR pytest tests/exporting``.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fas.exporting.nir import SETTINGS


def need(*modules: str) -> list[Any]:
    """Import modules; skip the test if one is missing."""
    found = []
    for name in modules:
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                found.append(importlib.import_module(name))
        except ImportError as error:
            pytest.skip(f"{name} cannot be imported ({error}): PYTHONPATH can name a folder that has it")
    return found


def _tap(module: Any, sink: list[Tensor]) -> None:
    module.register_forward_hook(lambda _, __, out: sink.append(out[0] if isinstance(out, tuple) else out))


def _find(network: Any, kind: type) -> Any:
    return next(module for module in network.modules() if isinstance(module, kind))


def snntorch(graph: Any, received: Tensor, v_init: Tensor) -> tuple[Tensor, Tensor]:
    reader, package = need("snntorch.import_nir", "snntorch")
    with contextlib.redirect_stdout(io.StringIO()):
        network = reader.import_from_nir(graph)
    neuron = _find(network, package.Leaky)
    settings = dict(SETTINGS["snntorch"]["set"])
    neuron.beta.fill_(settings.pop("beta"))
    for name, value in settings.items():
        setattr(neuron, name, value)
    neuron.mem = (v_init + 2.0**-22).expand(received.shape[1], -1)
    spikes: list[Tensor] = []
    _tap(neuron, spikes)
    outputs, state = [], None
    for current in received:
        answer = network(current, state)
        answer, state = answer if isinstance(answer, tuple) else (answer, None)
        outputs.append(answer)
    return torch.stack(spikes), torch.stack(outputs)


def spikingjelly(graph: Any, received: Tensor, v_init: Tensor) -> tuple[Tensor, Tensor]:
    neurons, reader = need("spikingjelly.activation_based.neuron", "spikingjelly.activation_based.nir_exchange")
    network = reader.import_from_nir(graph, dt=1.0, device="cpu", step_mode="s")
    neuron = _find(network, neurons.IFNode)
    for name, value in SETTINGS["spikingjelly"]["set"].items():
        setattr(neuron, name, value)
    neuron.v = v_init.expand(received.shape[1], -1).clone()
    spikes: list[Tensor] = []
    _tap(next(module for module in network.modules() if getattr(module, "module", None) is neuron), spikes)
    outputs, state = [], None
    for current in received:
        answer, state = network(current, state)
        outputs.append(answer)
    return torch.stack(spikes), torch.stack(outputs)


def sinabs(graph: Any, received: Tensor, v_init: Tensor) -> tuple[Tensor, Tensor]:
    reader, layers, activation = need("sinabs.nir", "sinabs.layers", "sinabs.activation")
    steps, rows = received.shape[:2]
    network = reader.from_nir(graph, batch_size=rows)
    neuron = _find(network, layers.IAFSqueeze)
    neuron.spike_threshold = torch.as_tensor(neuron.spike_threshold)
    neuron.spike_fn, neuron.min_v_mem = activation.SingleSpike, None
    neuron.init_state_with_shape((rows, len(v_init)))
    neuron.v_mem = v_init.expand(rows, -1).clone()
    spikes: list[Tensor] = []
    _tap(neuron, spikes)
    answer = network(received.transpose(0, 1).flatten(0, 1))
    answer = answer[0] if isinstance(answer, tuple) else answer
    return tuple(x.unflatten(0, (rows, steps)).transpose(0, 1) for x in (spikes[0], answer))  # type: ignore[return-value]


def norse(graph: Any, received: Tensor, v_init: Tensor) -> tuple[Tensor, Tensor]:
    package, functional = need("norse.torch", "norse.torch.functional.iaf")
    network = package.from_nir(graph)
    neuron = _find(network, package.IAFCell)

    def step(current: Tensor, state: Any, parameters: Any, dt: float = 0.001) -> tuple[Tensor, Any]:
        potential = state.v + current
        fired = (potential >= parameters.v_th).float()
        return fired, functional.IAFFeedForwardState(potential - fired * parameters.v_th)

    neuron.activation = step
    rows = received.shape[1]
    neuron.state_fallback = lambda current: functional.IAFFeedForwardState(v_init.expand(rows, -1).clone())
    spikes: list[Tensor] = []
    _tap(neuron, spikes)
    outputs, state = [], None
    for current in received:
        answer, state = network(current, state)
        outputs.append(answer)
    return torch.stack(spikes), torch.stack(outputs)


SIMULATORS: dict[str, Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "snntorch": snntorch, "spikingjelly": spikingjelly, "sinabs": sinabs, "norse": norse,
}  # fmt: skip
