"""Exchanging linear layers and convolutions for spiking ones, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from fas.errors import SiteError
from fas.layers.adapting_population import AdaptingPopulation
from fas.layers.attention import AttentionOperands
from fas.layers.conv import SpikingConv2d
from fas.layers.experts import ExpertLinear, SpikingExpert
from fas.layers.linear import SpikingLinear
from fas.layers.once import Once
from fas.layers.population import Population
from fas.layers.simulation import Simulation
from fas.layers.spiking_layer import SpikingLayer
from fas.surgery.attention import use_dense_attention, use_spiking_attention
from fas.surgery.experts import close_experts, is_fused, open_experts
from fas.surgery.gated import attach_operators, detach_operators
from fas.surgery.sites import is_convolution, is_linear, is_spiking
from fas.surgery.written_attention import use_dense_products, use_spiking_products, writes_attention
from fas.types import OPERANDS, Granularity, Neuron, Site


def attach(
    model: nn.Module,
    sites: Iterable[Site],
    simulation: Simulation,
    neuron: Callable[[Site], Neuron],
    *,
    granularity: Granularity = "channel",
    gated: bool = False,
) -> None:
    """Put a population of neurons in front of the linear layers and attention factors of every site, in place.

    Raises:
        SiteError: an unknown site, another width, or fixed attention. The model is left as it was.
    """

    def population_of(site: Site, device: torch.device, **more: Any) -> Population:
        model_of = neuron(site)
        kind = AdaptingPopulation if model_of.adapts else Population
        return kind(site.path, site.channels, model_of, simulation, granularity=granularity, device=device, **more)

    sites = list(sites)
    modules = dict(model.named_modules())
    for path in {path.rpartition(".")[0].rpartition(".")[0] for site in sites for path in site.layers}:
        # `….experts.up.3` lies two names below what holds the weights of all experts.
        if path in modules and is_fused(modules[path]):
            open_experts(modules[path])
    exchanged: dict[str, nn.Module] = {}
    factors: dict[str, dict[str, Population]] = {}
    for site in sites:
        if site.role in OPERANDS:
            path = attention_of(site)
            device = next(_submodule(model, path).parameters()).device
            factors.setdefault(path, {})[site.role] = population_of(site, device)
            continue
        activation = _submodule(model, site.activation) if site.activation else None
        population: Population | None = None
        view = Once(len(site.layers))
        for path in site.layers:
            dense = _submodule(model, path)
            convolves = site.role == "conv_input"
            if not (is_convolution(dense) if convolves else is_linear(dense)) or path in exchanged:
                kind = SpikingLinear.__name__ if path in exchanged else type(dense).__name__
                wanted = "convolution" if convolves else "linear layer"
                raise SiteError(f"{path} is a {kind}, not a dense {wanted}; convert once")
            if population is None:
                device = cast(Tensor, dense.weight).device
                population = population_of(site, device, readers=len(site.layers), activation=activation)
            layer: SpikingLayer
            if convolves:
                layer = SpikingConv2d(cast(nn.Conv2d, dense), population, view, owner=path == site.path)
                width = layer.in_channels
            else:
                kind_of = SpikingExpert if isinstance(dense, ExpertLinear) else SpikingLinear
                layer = kind_of(dense, population, owner=path == site.path)
                width = layer.in_features
            if width != site.channels:
                raise SiteError(
                    f"{path} reads {width} channels but the site has {site.channels}; "
                    "the configuration belongs to another model"
                )
            layer.train(dense.training)
            exchanged[path] = layer
        if site.activation:
            if getattr(activation, "inplace", False):
                # It would overwrite the input of the population, which others may read.
                activation.inplace = False  # type: ignore[union-attr]
            exchanged[site.activation] = nn.Identity()
    if factors:
        # Before anything is exchanged: this may be refused.
        use_spiking_attention(model)
    for path, module in exchanged.items():
        model.set_submodule(path, module)
    _call_parts(model, True)
    for path, populations_of in factors.items():
        attention = model.get_submodule(path)
        attention.operands = AttentionOperands(populations_of, softmax_gated=gated)
        if writes_attention(attention):
            use_spiking_products(attention)
    if gated:
        attach_operators(model, simulation)


def detach(model: nn.Module, sites: Iterable[Site]) -> None:
    """Put dense layers, activations and attention back, with the present weights; thresholds are dropped."""
    sites = list(sites)
    _call_parts(model, False)
    detach_operators(model)
    operands = dict.fromkeys(attention_of(site) for site in sites if site.role in OPERANDS)
    for path in operands:
        attention = _submodule(model, path)
        del attention.operands
        use_dense_products(attention)
    if operands:
        use_dense_attention(model)
    for site in sites:
        if site.role in OPERANDS:
            continue
        layers = [cast("SpikingLayer", _submodule(model, path)) for path in site.layers]
        if site.activation:
            model.set_submodule(site.activation, cast(nn.Module, layers[0].population.activation))
        for path, layer in zip(site.layers, layers, strict=True):
            model.set_submodule(path, layer.dense())
    close_experts(model)


def _call_parts(model: nn.Module, always: bool) -> None:
    """Let torch's own encoders call their layers in evaluation too, where they would read weights past any spikes."""
    # What lets them: the activation is one that they know, and padding may be cut out.
    name = {nn.TransformerEncoder: "use_nested_tensor", nn.TransformerEncoderLayer: "activation_relu_or_gelu"}
    for module in model.modules():
        for attribute in (name[kind] for kind in name if isinstance(module, kind)):
            if always:
                module.__dict__[f"dense_{attribute}"] = module.__dict__[attribute]
            module.__dict__[attribute] = False if always else module.__dict__.pop(f"dense_{attribute}")


def attention_of(site: Site) -> str:
    """Return the dotted name of the attention module that a factor belongs to."""
    return site.path.removesuffix(f".operands.{site.role}")


def spiking_layers(model: nn.Module) -> dict[str, Any]:
    """Return the spiking layers (linear and convolutions) by dotted name, in the order of the module tree."""
    return {p: m for p, m in model.named_modules() if isinstance(m, SpikingLayer)}


def populations(model: nn.Module) -> dict[str, Population]:
    """Return the populations by site, in the order of the module tree."""
    return {m.path: m for m in model.modules() if isinstance(m, Population)}


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise SiteError(
            f"{type(model).__name__} has no module {path}; the configuration belongs to another model"
        ) from None


def neuron_parameters(model: nn.Module) -> set[str]:
    """Return the names of the parameters that the dense network does not have."""
    names: set[str] = set()
    for path, module in model.named_modules():
        if isinstance(module, Population):
            names.update(f"{path}.{name}" for name, _ in module.named_parameters(recurse=False))
        elif is_spiking(module):
            names.add(f"{path}.correction")
    return names
