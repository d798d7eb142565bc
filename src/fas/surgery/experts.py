"""Modules of fused experts, taken apart into linear layers for the trace and for spikes, and put together again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from fas.layers.experts import ExpertLinear, Routed
from fas.surgery.written_attention import class_with, class_without


def is_fused(module: nn.Module) -> bool:
    """Whether a module is one of those that transformers runs by its ``ExpertsInterface``, or was made of one."""
    marks = ("num_experts", "has_gate", "has_bias", "is_transposed", "_apply_gate", "down_proj")
    return all(hasattr(module, mark) for mark in marks) and cast(Tensor, module.down_proj).ndim == 3


def open_experts(experts: Any) -> None:
    """Let a module of fused experts run them one by one through linear layers ``up`` and ``down``, in place."""
    if isinstance(experts, Routed):
        return
    names = {"up": "gate_up_proj" if experts.has_gate else "up_proj", "down": "down_proj"}
    base: Any = type(experts)
    experts.__class__ = class_with(Routed, base)
    for child, name in names.items():
        many = getattr(experts, name).shape[0]
        experts.add_module(child, nn.ModuleList(ExpertLinear(experts, name, index) for index in range(many)))


def close_experts(model: nn.Module) -> None:
    """Undo ``open_experts`` in all of a model, in place."""
    for experts in [module for module in model.modules() if isinstance(module, Routed)]:
        experts.__class__ = class_without(type(experts))
        del experts.up, experts.down


@contextmanager
def opened(model: nn.Module) -> Iterator[None]:
    """Show every expert's linear layers to a probe, which runs all of them on all tokens."""
    found: list[Any] = [module for module in model.modules() if is_fused(module) and not isinstance(module, Routed)]
    for experts in found:
        open_experts(experts)
        experts.every = True
    try:
        yield
    finally:
        for experts in found:
            del experts.every
            close_experts(experts)
