"""What each simulator must be told to run an exported block as we do; none gets it from a NIR file alone."""

from __future__ import annotations

from typing import Any

# Versions that were tried: snnTorch 1.0.0, SpikingJelly 2.0.0, sinabs 3.1.3, Norse 1.1.0.
SETTINGS: dict[str, dict[str, Any]] = {
    "snntorch": {
        "reader": "snntorch.import_nir.import_from_nir(graph)",
        "nir": ">=1.0.4",
        "neuron": "snntorch.Leaky",
        "set": {"beta": 1.0, "init_hidden": True, "output": False, "reset_delay": True},
        "start": "neuron.mem = v_init + 2**-22 for every row, before the first step",
        "ties": "fires above the threshold, not at it: hence the 2**-22",
    },
    "spikingjelly": {
        "reader": "spikingjelly.activation_based.nir_exchange.import_from_nir(graph, dt=1.0, step_mode='s')",
        "nir": ">=1.0.7, with nirtorch >=2.6",
        "neuron": "spikingjelly.activation_based.neuron.IFNode",
        "set": {"v_reset": None},
        "start": "neuron.v = v_init for every row, before the first step",
        "ties": "fires at the threshold, as here",
    },
    "sinabs": {
        "reader": "sinabs.nir.from_nir(graph, batch_size=rows)",
        "nir": "<=1.0.4, with nirtorch 2.0",
        "neuron": "sinabs.layers.IAFSqueeze",
        "set": {"spike_fn": "sinabs.activation.SingleSpike", "min_v_mem": None},
        "start": "neuron.init_state_with_shape((rows, neurons)); neuron.v_mem = v_init for every row",
        "ties": "fires at the threshold, as here",
        "layout": "rows first, their time steps one behind the other: [rows * T, features]",
    },
    "norse": {
        "reader": "norse.torch.from_nir(graph)",
        "nir": ">=1.0.4",
        "neuron": "norse.torch.IAFCell",
        # Its own step resets to zero.
        "set": {"activation": "a step that subtracts v_th: v += i; z = v >= v_th; v -= z * v_th"},
        "start": "a state with v = v_init for every row",
        "ties": "as the step that is set",
    },
}  # fmt: skip
"""By simulator: how to read the graph, what to set on the neuron, and how to begin.

As imported, no one resets by subtraction from an initial potential: of 3,072 spikes sinabs misplaces 888, Norse and
SpikingJelly 520 each, and snnTorch fails; with these settings all are exact.
"""
