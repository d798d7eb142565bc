"""What methods have in common: the check of their options, which sites spike, with which neuron."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, get_args

from fas import registry
from fas.errors import SiteError
from fas.surgery.probe import is_convolutional
from fas.surgery.sites import find_sites
from fas.types import Coverage, Execution, Granularity, Method, Neuron, Operators, Schedule, Site

_CHOICES = {
    "coverage": Coverage,
    "granularity": Granularity,
    "schedule": Schedule,
    "operators": Operators,
    "execution": Execution,
}


def check_options(method: Any) -> None:
    """Refuse values outside their range, in the fields that every method has; make ``exclude`` a tuple.

    Raises:
        ValueError: such a value; the message names it.
    """
    for name in ("timesteps", "levels"):
        value = getattr(method, name)
        if name == "levels" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1")
    for name, choices in _CHOICES.items():
        if getattr(method, name) not in get_args(choices):
            raise ValueError(f"{name} is {getattr(method, name)!r}; choose one of {', '.join(get_args(choices))}")
    exclude = method.exclude
    if isinstance(exclude, str):
        raise ValueError(f"exclude is the string {exclude!r}; expected a list of patterns: [{exclude!r}]")
    object.__setattr__(method, "exclude", tuple(exclude))


def build_neuron(name: str, site: Site, remedy: str) -> Neuron:
    """Return a neuron by its registry name, with a sign where the site needs one.

    Raises:
        SiteError: the site's values take both signs and the neuron has none; ``remedy`` says what to do.
    """
    neuron: type[Any] = registry.load("neurons", name)
    if "signed" in {field.name for field in fields(neuron)}:
        built: Neuron = neuron(signed=site.signed)
        return built
    if site.signed:
        raise SiteError(f"{site.path} receives values of both signs, which {name} cannot carry: {remedy}")
    plain: Neuron = neuron()
    return plain


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
        check_options(own)
        if own.coverage == "full":
            raise ValueError(
                f"coverage is 'full', but {type(self).__name__} is a method for layers: its paper has no neurons for "
                "the factors of attention; choose linear or mlp"
            )

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
        return build_neuron(
            self.neuron,
            site,
            "exclude the layer, choose coverage='mlp' with replace_activation=True and fine-tune, or take method fas",
        )
