"""Folding batch normalisation into the convolution or linear layer before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fas.errors import SiteError
from fas.surgery.flow import Flow
from fas.surgery.probe import evaluating, hooked

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_LAYERS = (nn.Conv2d, nn.Linear)


def fold_batch_norm(model: nn.Module, probe: Mapping[str, Any]) -> dict[str, str]:
    """Fold every batch normalisation that alone reads a layer's output into that layer, in place.

    W' = W · γ/√(σ² + ε) and b' = β + (b − μ) · γ/√(σ² + ε) with the running statistics μ, σ²: exact in evaluation
    mode. The normalisation becomes an identity. One that reads anything else (a residual sum, in pre-activation
    networks) stays, and so does one without running statistics.

    Returns:
        The normalisation by the layer it went into, both as dotted names.
    """
    pairs = _pairs(model, probe)
    for layer, norm in pairs.items():
        _fold(model.get_submodule(layer), model.get_submodule(norm))
    _remove(model, pairs.values())
    return pairs


def prepare_folded(model: nn.Module, pairs: Mapping[str, str]) -> None:
    """Give a model the form that folding gave another one of its kind: biases, and no normalisations; in place.

    Raises:
        SiteError: modules that the model does not have.
    """
    for path, norm in pairs.items():
        try:
            layer: Any = model.get_submodule(path)
            model.get_submodule(norm)
        except AttributeError:
            raise SiteError(f"{type(model).__name__} has no {path} with {norm} after it: it is another model") from None
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros_like(layer.weight[(slice(None), *[0] * (layer.weight.ndim - 1))]))
    _remove(model, pairs.values())


def _pairs(model: nn.Module, probe: Mapping[str, Any]) -> dict[str, str]:
    flow = Flow()
    outputs: dict[str, tuple[Tensor, int]] = {}
    inputs: dict[str, Tensor] = {}
    calls: dict[str, int] = {}
    handles = []
    for path, module in model.named_modules():

        def enter(_: nn.Module, arguments: tuple[Any, ...], path: str = path) -> None:
            inputs[path], flow.layer = arguments[0], path
            calls[path] = calls.get(path, 0) + 1

        def leave(_: nn.Module, arguments: Any, output: Tensor, path: str = path) -> None:
            outputs[path], flow.layer = (output, len(flow.steps)), None

        if type(module) in (*_NORMS, *_LAYERS):
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    with hooked(handles), evaluating(model), flow:
        model(**probe)
    pairs: dict[str, str] = {}
    modules = dict(model.named_modules())
    for norm, x in inputs.items():
        module = modules[norm]
        if not isinstance(module, _NORMS) or module.running_mean is None or calls[norm] > 1:
            continue
        for layer, (output, since) in outputs.items():
            if output is x and isinstance(modules[layer], _LAYERS) and calls[layer] == 1:
                if flow.reaches(output, since, frozenset()) == {(id(output), norm)}:
                    pairs[layer] = norm
    return pairs


@torch.no_grad()
def _fold(layer: Any, norm: Any) -> None:
    scale = (norm.running_var + norm.eps).rsqrt()
    shift = -norm.running_mean * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    bias = shift if layer.bias is None else shift + layer.bias * scale
    layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))
    if layer.bias is None:
        layer.bias = nn.Parameter(bias.clone())
    else:
        layer.bias.copy_(bias)


def _remove(model: nn.Module, norms: Iterable[str]) -> None:
    for path in norms:
        model.set_submodule(path, nn.Identity())
