"""What methods have in common: which sites spike, with which neuron."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from fas import registry
from fas.errors import SiteError
from fas.types import OPERANDS, Coverage, Granularity, Method, Neuron, Schedule, Site
from fas.words import value_of


@dataclass(frozen=True, kw_only=True)
class OneNeuron(Method):
    """A method with the same neuron at every site of its coverage."""

    neuron: ClassVar[str | Neuron | type[Neuron]]
    """Registry name of the neuron, or the neuron itself."""
    _remedy: ClassVar[str]
    """What to do where a site needs a sign and the neuron has none."""

    def select(self, model: Any, probe: Mapping[str, Any] | None = None) -> list[Site]:
        """Find the sites of the coverage."""
        sites = self._sites(model, probe)
        for site in sites:
            self.build(site)
        return sites

    def build(self, site: Site) -> Neuron:
        """Return the neuron of the method, with a sign where the site needs one."""
        chosen = chosen_neuron(self.neuron)
        built: Any = registry.load("neurons", chosen)() if isinstance(chosen, str) else chosen
        if site.role in (*OPERANDS, "conv_input"):
            built = built.unadapted()
        if "signed" in {field.name for field in fields(built)}:
            built = replace(built, signed=site.signed)
        elif site.signed:
            name = registry.name_of("neurons", type(built))
            raise SiteError(f"{site.path} receives values of both signs, which {name} cannot carry: {self._remedy}")
        neuron: Neuron = built
        return neuron

    def _sites(self, model: Any, probe: Mapping[str, Any] | None) -> list[Site]:
        from fas.surgery.sites import find_sites

        return find_sites(
            model, self.coverage, exclude=self.exclude, replace_activation=self.replace_activation, probe=probe
        )


@dataclass(frozen=True, kw_only=True)
class RateCoded(OneNeuron):
    """A method for layers with one rate-coded neuron, per layer and online as in the papers; attention stays dense.

    A subclass names the neuron and gives the stages.

    Attributes:
        timesteps: T, time steps of the spiking network.
        encode_image: turn a convolutional network's image into signed spikes; off, it is a constant current.

    Raises:
        ValueError: a value outside its range; the message names it.
    """

    _remedy = "exclude the layer, choose coverage='mlp' with replace_activation=True and fine-tune, or take method fas"

    timesteps: int = 32
    coverage: Coverage = "linear"
    granularity: Granularity = "tensor"
    schedule: Schedule = "online"
    encode_image: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coverage == "full":
            raise ValueError(
                f"coverage is 'full', but {type(self).__name__} is a method for layers: its paper has no neurons for "
                "the factors of attention; choose linear or mlp"
            )

    def _sites(self, model: Any, probe: Mapping[str, Any] | None) -> list[Site]:
        from fas.surgery.probe import is_convolutional

        sites = super()._sites(model, probe)
        if is_convolutional(model) and not self.encode_image:
            sites = [site for site in sites if site.role != "conv_input" or not site.signed or site is not sites[0]]
            if not sites:
                raise SiteError(
                    f"{type(model).__name__} has no site but its image: set encode_image=True to have that spike"
                )
        return sites


def chosen_neuron(given: Any) -> str | Neuron:
    """Return a neuron by its registry name where it has one and no fields of its own, else as an object.

    Args:
        given: such a name, ``name:field=value`` with as many fields as there are to set, ``module:class``, a neuron,
            its class, or what ``neuron_as_json`` returns.

    Raises:
        ValueError: none of these.
    """
    options: dict[str, Any] = {}
    if isinstance(given, Mapping) and isinstance(given.get("class"), str):
        options = {name: value for name, value in given.items() if name != "class"}
        given = given["class"]
    elif isinstance(given, str) and "=" in given:
        given, *own = given.split(":")
        options = {name: value_of(value) for name, _, value in (part.partition("=") for part in own)}
    if isinstance(given, str):
        cls: Any = registry.load("neurons", given)
        if not options and ":" not in given:
            return given
        given = cls
    if isinstance(given, type) and issubclass(given, Neuron):
        try:
            given = given(**options)
        except TypeError as error:
            known = ", ".join(field.name for field in fields(given) if field.name != "signed")
            raise ValueError(f"neuron {given.__name__} cannot be made: {error}; its fields: {known}") from None
    if not isinstance(given, Neuron):
        names = ", ".join(registry.available("neurons"))
        raise ValueError(f"neuron is {given!r}; expected a neuron, its class or a name: {names}")
    name = registry.name_of("neurons", type(given))
    return given if ":" in name or given.own_fields() else name


def neuron_as_json(neuron: str | Neuron) -> str | dict[str, Any]:
    """Return what ``chosen_neuron`` makes the same neuron of."""
    if isinstance(neuron, str):
        return neuron
    name, own = registry.name_of("neurons", type(neuron)), neuron.own_fields()
    return {"class": name, **own} if own else name
