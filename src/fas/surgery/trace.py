"""Which layers a run of the model calls, in which order, on which tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fas.errors import SiteError
from fas.layers.experts import ExpertLinear
from fas.surgery.attention import AttentionCall, is_attention_class, recording_attention
from fas.surgery.flow import Flow
from fas.surgery.probe import evaluating, hooked, is_convolutional, probe_inputs, reads_images_and_text

# Activation modules by the name of their class: transformers and its model files define dozens.
_ACTIVATION = re.compile(r"gelu|relu|silu|swish|mish|sigmoid|tanh|softplus|activation|laplace", re.IGNORECASE)
_BLOCK = re.compile(r"^(?:\d+|.*?\.\d+)(?=\.|$)")


def is_linear(module: nn.Module) -> bool:
    """Whether a module is y = Wx + b over the last dimension (``nn.Linear``, GPT-2's ``Conv1D``, an expert's)."""
    if isinstance(module, nn.Linear | ExpertLinear):
        return True
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.ndim == 2


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is a two-dimensional convolution, groups and subclasses included."""
    return isinstance(module, nn.Conv2d)


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an element-wise non-linearity."""
    leaf = next(module.children(), None) is None
    return leaf and not is_linear(module) and bool(_ACTIVATION.search(type(module).__name__))


def block_of(path: str) -> str | None:
    """Return the outermost repeated block a module lies in (``model.layers.3``), None outside of all."""
    found = _BLOCK.match(path)
    return found.group(0) if found else None


def starred(path: str) -> str:
    """Return a dotted name with ``*`` for the numbers of blocks, so that layers of one kind are called alike."""
    return re.sub(r"(^|\.)\d+(?=\.|$| )", r"\1*", path)


@dataclass
class Call:
    """One call of a linear layer, a convolution or an activation, in the order of execution.

    ``steps`` is how many calls of torch functions had been noted when it ended.
    """

    path: str
    module: nn.Module
    input: Tensor
    output: Tensor | None = None
    steps: int = 0


@dataclass
class Trace:
    """Calls of linear layers and activations; those of attention, with how many of the others came before.

    ``others`` are layers that return more than Wx + b (Llama 4's router is an ``nn.Linear`` that returns scores too).
    """

    calls: list[Call] = field(default_factory=list)
    attention: list[tuple[int, AttentionCall]] = field(default_factory=list)
    entered: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)
    flow: Flow | None = None

    def watch(self, path: str, module: nn.Module) -> list[RemovableHandle]:
        """Note every call of a module until the handles are removed."""

        def before(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            tensors = (*arguments, *named.values())
            self.calls.append(Call(path, module, next(t for t in tensors if isinstance(t, Tensor))))
            if self.flow is not None and not is_activation(module):
                self.flow.layer = path

        def after(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            call = next(call for call in reversed(self.calls) if call.path == path)
            call.output = output
            if not isinstance(output, Tensor):
                self.others.add(path)
            if self.flow is not None:
                self.flow.layer, call.steps = None, len(self.flow.steps)

        return [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]


def trace(
    model: nn.Module, probe: Mapping[str, Any] | None = None, *, attention: bool = False, flow: Flow | None = None
) -> Trace:
    """Run a probe through the model and record every call of a linear layer or an activation.

    Args:
        model: any module that the probe runs.
        probe: a batch for its forward, by default the smallest that it accepts.
        attention: record the calls of the attention function too, and the modules called attention.
        flow: records the calls of torch functions; convolutions of a plain module are then watched as well.

    Raises:
        SiteError: a model of images and text that the probe made up for it does not run.
    """
    record, handles = Trace(flow=flow), []
    convolutions = flow is not None and is_convolutional(model)
    for path, module in model.named_modules():
        if is_linear(module) or is_activation(module) or (convolutions and is_convolution(module)):
            handles += record.watch(path, module)
        elif attention and is_attention_class(module):
            handles.append(module.register_forward_pre_hook(lambda *_, path=path: record.entered.add(path)))

    def keep(call: AttentionCall) -> None:
        record.attention.append((len(record.calls), call))

    attending = recording_attention(model, keep) if attention else nullcontext()
    with hooked(handles), evaluating(model), in_parts(), attending, flow or nullcontext():
        if probe is not None or not reads_images_and_text(model):
            model(**(probe if probe is not None else probe_inputs(model)))
        else:
            _run_made_up(model)
    return record


@contextmanager
def in_parts() -> Iterator[None]:
    """Let torch's encoders hand plain tensors to their layers, where fused ones would hand on nested tensors."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _run_made_up(model: nn.Module) -> None:
    try:
        model(**probe_inputs(model))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise SiteError(
            f"{type(model).__name__} reads images and text, and a probe made up from its configuration does not run "
            f"({type(error).__name__}: {error}): pass probe={{...}}, a batch of one as its processor makes it"
        ) from error
