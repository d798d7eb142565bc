"""Exchanging linear layers for spiking ones, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from torch import Tensor, nn

from fas.errors import SiteError
from fas.layers.linear import SpikingLinear
from fas.layers.population import Population
from fas.layers.simulation import Simulation
from fas.surgery.sites import is_linear
from fas.types import Granularity, Neuron, Site


def attach(
    model: nn.Module,
    sites: Iterable[Site],
    simulation: Simulation,
    neuron: Callable[[Site], Neuron],
    *,
    granularity: Granularity = "channel",
) -> None:
    """Put a population of neurons in front of the linear layers of every site, in place.

    Raises:
        SiteError: a site that the model does not have, or whose width differs; the model is left as it was.
    """
    exchanged: dict[str, nn.Module] = {}
    for site in sites:
        activation = _submodule(model, site.activation) if site.activation else None
        population: Population | None = None
        for path in site.layers:
            dense = _submodule(model, path)
            if not is_linear(dense) or path in exchanged:
                kind = SpikingLinear.__name__ if path in exchanged else type(dense).__name__
                raise SiteError(f"{path} is a {kind}, not a dense linear layer; convert once")
            if population is None:
                population = Population(
                    site.path,
                    site.channels,
                    neuron(site),
                    simulation,
                    granularity=granularity,
                    readers=len(site.layers),
                    activation=cast("Callable[[Tensor], Tensor] | None", activation),
                    device=cast(Tensor, dense.weight).device,
                )
            layer = SpikingLinear(dense, population, owner=path == site.path)
            if layer.in_features != site.channels:
                raise SiteError(
                    f"{path} reads {layer.in_features} channels but the site has {site.channels}; "
                    "the configuration belongs to another model"
                )
            layer.train(dense.training)
            exchanged[path] = layer
        if site.activation:
            exchanged[site.activation] = nn.Identity()
    for path, module in exchanged.items():
        model.set_submodule(path, module)


def detach(model: nn.Module, sites: Iterable[Site]) -> None:
    """Put the dense layers and activations back, with the present weights; thresholds are dropped."""
    for site in sites:
        layers = [cast(SpikingLinear, _submodule(model, path)) for path in site.layers]
        if site.activation:
            model.set_submodule(site.activation, cast(nn.Module, layers[0].population.activation))
        for path, layer in zip(site.layers, layers, strict=True):
            model.set_submodule(path, layer.dense())


def spiking_layers(model: nn.Module) -> dict[str, SpikingLinear]:
    """Return the spiking layers by dotted name, in the order of the module tree."""
    return {p: m for p, m in model.named_modules() if isinstance(m, SpikingLinear)}


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
