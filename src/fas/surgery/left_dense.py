"""What a conversion leaves dense, as shares of the multiply-adds of a pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fas.layers.experts import Routed
from fas.layers.simulation import Simulation
from fas.layers.spiking_layer import SpikingLayer
from fas.surgery.probe import evaluating, probe_inputs, without_cache
from fas.surgery.trace import in_parts, starred

_SHOWN = 8


def left_dense(model: Any, probe: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Return the modules with weights that no spikes drive, each with its share of all multiply-adds with weights.

    Products of two activations (attention) are not part of it: their share grows with the context.

    Returns:
        Shares by dotted name, the number of a block as ``*``, the largest first; empty where spikes drive everything.
    """
    simulation: Simulation = model._simulation
    # Where torch has no such operation, transformers brings one of its own.
    places = ((torch.ops.aten, "_grouped_mm"), (torch.ops.transformers, "grouped_mm_fallback"))
    known = {op: _grouped for place, name in places if (op := getattr(place, name, None)) is not None}
    with in_parts(), FlopCounterMode(display=False, custom_mapping=known) as counter, evaluating(model):
        with simulation.using(network="ann", schedule="layerwise", observers=[]):
            model(**(probe if probe is not None else probe_inputs(model)), **without_cache(model))
    # Every module counts what happens in its children too; the name of the class stands for that of the model.
    found = {name.partition(".")[2]: sum(by.values()) for name, by in counter.get_flop_counts().items()}
    whole, shares = 0, dict[str, float]()
    modules = dict(model.named_modules())
    for path, number in found.items():
        module = modules.get(path)
        if module is None or not any(parameter.ndim > 1 for parameter in module.parameters(recurse=False)):
            continue
        # A fused path may count a product with its caller's name, or not at all.
        number = max(0, number - sum(within for inner, within in found.items() if inner.rpartition(".")[0] == path))
        whole += number
        name = starred(path)
        shares[name] = shares.get(name, 0) + number * _dense_part(module)
    shares = {name: number for name, number in shares.items() if number}
    return {name: number / whole for name, number in sorted(shares.items(), key=lambda item: -item[1])}


def in_words(shares: Mapping[str, float]) -> str:
    """Return one sentence about what ``left_dense`` found."""
    shown = [f"{path} {100 * share:.2g} %" for path, share in list(shares.items())[:_SHOWN]]
    if not shown:
        return "spikes drive every multiply-add with weights"
    more = f" and {len(shares) - _SHOWN} more" if len(shares) > _SHOWN else ""
    return (
        f"left dense: {100 * sum(shares.values()):.2g} % of the multiply-adds with weights ({', '.join(shown)}{more})"
    )


def _dense_part(module: nn.Module) -> float:
    """Return how much of a module's products with its own weights no spikes drive."""
    if not isinstance(module, Routed):
        return float(not isinstance(module, SpikingLayer))
    parts: Any = [*module.up, *module.down]  # type: ignore[misc]
    dense = sum(part.weight.numel() for part in parts if not isinstance(part, SpikingLayer))
    return dense / sum(part.weight.numel() for part in parts)


def _grouped(rows: Any, weights: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Return the operations of rows [n, in] with those of their expert among [experts, in, out]."""
    return 2 * rows[0] * weights[-2] * weights[-1]
