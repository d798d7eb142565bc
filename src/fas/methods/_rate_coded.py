"""What methods have in common: which sites spike, with which neuron."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, ClassVar

from fas import registry
from fas.errors import SiteError
from fas.types import Coverage, Granularity, Method, Neuron, Schedule, Site


@dataclass(frozen=True, kw_only=True)
class RateCoded(Method):
    """A method for layers with one rate-coded neuron, per layer and online as in the papers; attention stays dense.

    A subclass names the neuron and gives the stages.

    Attributes:
        timesteps: T, time steps of the spiking network.
        encode_image: let the image of a convolutional network become signed spikes; off, its first layer reads it as
            a constant current.

    Raises:
        ValueError: a value outside its range; the message names it.
    """

    neuron: ClassVar[str | Neuron | type[Neuron]]
    """Registry name of the neuron at every site, or the neuron itself."""

    timesteps: int = 32
    coverage: Coverage = "linear"
    granularity: Granularity = "tensor"
    schedule: Schedule = "online"
    encode_image: bool = False

    def __post_init__(self) -> None:
        """Check the fields that all of these methods have."""
        super().__post_init__()
        if self.coverage == "full":
            raise ValueError(
                f"coverage is 'full', but {type(self).__name__} is a method for layers: its paper has no neurons for "
                "the factors of attention; choose linear or mlp"
            )

    def select(self, model: Any, probe: Mapping[str, Any] | None = None) -> list[Site]:
        """Find the sites of the coverage; the image of a convolutional network stays a constant current."""
        from fas.surgery.probe import is_convolutional

        sites = sites_of(self, model, probe)
        if is_convolutional(model) and not self.encode_image:
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


def sites_of(method: Method, model: Any, probe: Mapping[str, Any] | None) -> list[Site]:
    """Return the sites of a method's coverage."""
    from fas.surgery.sites import find_sites

    return find_sites(
        model,
        method.coverage,
        exclude=method.exclude,
        replace_activation=method.replace_activation,
        probe=probe,
    )


def build_neuron(neuron: str | Neuron | type[Neuron], site: Site, remedy: str) -> Neuron:
    """Return a neuron for a site, with a sign where the site needs one.

    Args:
        neuron: as ``chosen_neuron`` takes it.
        site: the site.
        remedy: what to do where the neuron has no sign.

    Raises:
        SiteError: the site's values take both signs and the neuron has none.
    """
    chosen = chosen_neuron(neuron)
    built: Any = registry.load("neurons", chosen)() if isinstance(chosen, str) else chosen
    if "signed" in {field.name for field in fields(built)}:
        signed: Neuron = replace(built, signed=site.signed)
        return signed
    if site.signed:
        name = registry.name_of("neurons", type(built))
        raise SiteError(f"{site.path} receives values of both signs, which {name} cannot carry: {remedy}")
    plain: Neuron = built
    return plain


def chosen_neuron(given: Any) -> str | Neuron:
    """Return a neuron by its registry name where it has one and no fields of its own, else as an object.

    Args:
        given: such a name, ``module:class``, a neuron, its class, or what ``neuron_as_json`` returns.

    Raises:
        ValueError: none of these.
    """
    options: dict[str, Any] = {}
    if isinstance(given, Mapping) and isinstance(given.get("class"), str):
        options = {name: value for name, value in given.items() if name != "class"}
        given = given["class"]
    if isinstance(given, str):
        cls: Any = registry.load("neurons", given)
        if not options and ":" not in given:
            return given
        given = cls
    if isinstance(given, type) and issubclass(given, Neuron):
        try:
            given = given(**options)
        except TypeError as error:
            raise ValueError(f"neuron {given.__name__} cannot be made: {error}") from None
    if not isinstance(given, Neuron):
        names = ", ".join(registry.available("neurons"))
        raise ValueError(f"neuron is {given!r}; expected a neuron, its class or a name: {names}")
    name = registry.name_of("neurons", type(given))
    return given if ":" in name or _own(given) else name


def neuron_as_json(neuron: str | Neuron) -> str | dict[str, Any]:
    """Return what ``chosen_neuron`` makes the same neuron of."""
    if isinstance(neuron, str):
        return neuron
    name, own = registry.name_of("neurons", type(neuron)), _own(neuron)
    return {"class": name, **own} if own else name


def _own(neuron: Any) -> dict[str, Any]:
    """Return the fields that differ from their defaults; the sign is the site's."""
    plain = {field.name: field.default for field in fields(neuron) if field.default is not MISSING}
    return {name: v for name, v in asdict(neuron).items() if name != "signed" and v != plain.get(name, MISSING)}
