"""What the methods of the rate code have in common: which sites spike, with which neuron, in which schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, get_args

from fas import registry
from fas.errors import SiteError
from fas.surgery.probe import is_convolutional
from fas.surgery.sites import find_sites
from fas.types import Coverage, Execution, Granularity, Method, Neuron, Operators, Schedule, Site

CHOICES = {
    "coverage": Coverage,
    "granularity": Granularity,
    "schedule": Schedule,
    "operators": Operators,
    "execution": Execution,
}


@dataclass(frozen=True)
class RateCoded(Method):
    """A method whose fields include those that conversion reads; a subclass declares them all, for its options.

    ``neuron`` is the registry name of the neuron model at every site.
    """

    neuron: ClassVar[str]
    gated: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the fields that all of these methods have."""
        own: Any = self
        for name in ("timesteps", "levels"):
            value = getattr(own, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1")
        for name, choices in CHOICES.items():
            if getattr(own, name) not in get_args(choices):
                raise ValueError(f"{name} is {getattr(own, name)!r}; choose one of {', '.join(get_args(choices))}")
        if own.coverage == "full":
            raise ValueError(
                f"coverage is 'full', but {type(self).__name__} is a method for layers: its paper has no neurons for "
                "the factors of attention; choose linear or mlp"
            )
        if isinstance(own.exclude, str):
            raise ValueError(f"exclude is the string {own.exclude!r}; expected a list of patterns: [{own.exclude!r}]")
        object.__setattr__(self, "exclude", tuple(own.exclude))

    def select(self, model: Any, probe: Mapping[str, Any] | None = None) -> list[Site]:
        """Find the sites of the coverage; the image of a convolutional network stays a constant current."""
        own: Any = self
        options: dict[str, Any] = {"replace_activation": own.replace_activation, "probe": probe}
        sites = find_sites(model, own.coverage, exclude=own.exclude, **options)
        if is_convolutional(model) and not own.encode_image:
            sites = [site for site in sites if site.role != "conv_input" or not site.signed or site is not sites[0]]
            if not sites:
                raise SiteError(
                    f"{type(model).__name__} has no site but its image: set encode_image=True to have that spike"
                )
        for site in sites:
            self.build(site)
        return sites

    def build(self, site: Site) -> Neuron:
        """Return the neuron of the method, with a sign where the site needs one and the neuron can carry it."""
        neuron: type[Any] = registry.load("neurons", self.neuron)
        if "signed" in {field.name for field in fields(neuron)}:
            built: Neuron = neuron(signed=site.signed)
            return built
        if site.signed:
            raise SiteError(
                f"{site.path} receives values of both signs, which {self.neuron} cannot carry: exclude the layer, "
                "choose coverage='mlp' with replace_activation=True and fine-tune, or use the method fas"
            )
        return neuron()
