"""The configuration that a converted model carries in its config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, get_args, get_type_hints

from transformers.utils.quantization_config import QuantizationConfigMixin

from fas import registry
from fas._version import __version__
from fas.errors import CheckpointError
from fas.settings import SAVED, Settings, check
from fas.types import Method, Record, Role, Site

# Raised when directories of an older release can no longer be read as they are.
FORMAT = 1
# Stages that train, for directories whose records do not say so.
_TRAINED = ("finetune", "train_quantised", "reduce_bits")


class FASConfig(QuantizationConfigMixin):
    """What spikes and how, as JSON: transformers' quantisation config of a converted model.

    Given to ``from_pretrained`` of a dense checkpoint it converts on the way; the thresholds then still
    have to be calibrated. In a converted directory it rebuilds the spiking layers.

    Args:
        method: the method; or its name, a file of ``fas.methods``, or ``module:class`` of one that stands elsewhere.
        sites: the sites; None to find them in the model.
        records: what the stages did.
        data: name of the data that thresholds were calibrated on, where they have one.
        format: layout of the directory.
        version: release that wrote it.
        quant_method: always ``fas``.
        options: fields of the method (``timesteps``, ``coverage``, …), and settings that it lacks (``weights``).

    Attributes:
        method: its name.
        recipe: the method itself, with the settings as they are now.
        left_dense: shares of the multiply-adds that no spikes drive, by dotted name; None if nobody has looked.
        settings: those of the model that has this configuration, the same object; None before there is one.

    Raises:
        ValueError: unknown method, option or value.
        CheckpointError: a format that this release does not read; of another release, what this one does not know;
            sites or records that are malformed, or sites without the time steps that they were calibrated for.
    """

    def __init__(
        self,
        /,
        method: str | Method = "fas",
        *,
        sites: Sequence[Any] | None = None,
        records: Sequence[Any] = (),
        data: str | None = None,
        left_dense: Mapping[str, float] | None = None,
        format: int = FORMAT,
        version: str = __version__,
        quant_method: str = "fas",
        **options: Any,
    ) -> None:
        written = f"the model was written by fas {version}"
        remedy = "install a release that reads it, or convert the dense model again"
        if format != FORMAT:
            raise CheckpointError(
                f"{written} in format {format}, this is fas {__version__} with format {FORMAT}: {remedy}"
            )
        self.quant_method = quant_method
        try:
            self._method, self._given = _method(method, options)
        except ValueError as error:
            if version == __version__:
                raise
            raise CheckpointError(f"{written}, this is fas {__version__}: {error}; {remedy}") from None
        self.sites = None if sites is None else [_site(site) for site in _listed("sites", sites)]
        if self.sites == []:
            raise _damaged("an empty list of sites")
        # Fields that are younger than the directory have their default; this one every release has written.
        if self.sites is not None and "timesteps" not in options:
            raise _damaged("sites but no timesteps, which their thresholds were set for")
        self.records = [_record(record) for record in _listed("records", records)]
        self.data = data if isinstance(data, str) else None
        self.left_dense = dict(left_dense) if isinstance(left_dense, Mapping) else None
        self.format, self.version = format, version
        self.settings: Settings | None = None

    @property
    def method(self) -> str:
        """Name of the method: its file in ``fas.methods``, ``module:class`` of one that stands elsewhere."""
        return registry.name_of("methods", type(self._method))

    @property
    def recipe(self) -> Method:
        """The method with the settings as they are now; before they change, the very object that was given."""
        method = self._method
        if self.settings is None:
            return method
        now = {name: value for name, value in self.settings.saved().items() if name in method.options()}
        changed = {name: value for name, value in now.items() if value != getattr(method, name)}
        return method.with_options(**changed) if changed else method

    @recipe.setter
    def recipe(self, method: Method) -> None:
        self._method = method

    @property
    def neuron(self) -> str:
        """Names of the neurons at the sites, with their own fields as ``--neuron`` takes them."""
        neurons = (self._method.build(site) for site in self.sites or ())
        found = ((registry.name_of("neurons", type(one)), one.own_fields()) for one in neurons)
        texts = (":".join([name, *(f"{field}={value}" for field, value in own.items())]) for name, own in found)
        return ", ".join(dict.fromkeys(texts))

    def begin(self) -> Settings:
        """Return the settings that a model with these sites starts with; they are its own and this object's."""
        assert self.sites
        method = self._method
        values = {name: getattr(method, name) for name in SAVED if name in method.options()} | self._given
        if values["levels"] is None:
            values["levels"] = method.build(self.sites[0]).resolution(method.timesteps)
        self.settings = Settings(**values)
        return self.settings

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types, from which the constructor builds the same configuration."""
        settings = Settings(**self._given) if self.settings is None else self.settings
        return {
            "quant_method": self.quant_method,
            "method": self.method,
            "format": self.format,
            "version": __version__,
            **settings.saved(),
            **self.recipe.to_dict(),
            "sites": None if self.sites is None else [asdict(site) for site in self.sites],
            "records": [record.to_dict() for record in self.records],
            "data": self.data,
            "left_dense": self.left_dense,
        }

    def levels_after(self, timesteps: int) -> int:
        """Return how many values a neuron can send in a window of T steps, zero and both signs included.

        Sites with and without sign have neurons of different levels: the most of them count. 0 without sites.
        """
        return max((self.recipe.build(site).levels(timesteps) for site in self.sites or ()), default=0)

    def to_diff_dict(self) -> dict[str, Any]:
        """Return everything: a converted directory states its configuration in full."""
        return self.to_dict()


def build_method(name: str, options: dict[str, Any]) -> Method:
    """Return a method by name with some of its fields set.

    Raises:
        ValueError: unknown name or option; the known ones are listed.
    """
    cls = _method_class(name)
    known = cls.options()
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"method {name!r} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    hints = get_type_hints(cls)
    for option, value in options.items():
        kind, expected = _KINDS.get(hints[option], (object, ""))
        # A boolean is a number to Python, and "no" is true.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind in (int, int | float)):
            raise ValueError(f"{option} is {value!r}; expected {expected}")
    return cls(**options)


def _method_class(name: Any) -> type[Method]:
    if not isinstance(name, str):
        raise ValueError(f"method is {name!r}; expected a name: {', '.join(registry.available('methods'))}")
    cls = registry.load("methods", name)
    if not issubclass(cls, Method):
        raise ValueError(f"method is {name!r}, which is not a Method")
    return cls


def _method(method: Any, options: dict[str, Any]) -> tuple[Method, dict[str, Any]]:
    """Return a method, and the settings among the options that it does not have."""
    own = (method if isinstance(method, Method) else _method_class(method)).options()
    given = {name: options[name] for name in SAVED if name in options and name not in own}
    for name, value in given.items():
        check(name, value)
    options = {name: value for name, value in options.items() if name not in given}
    if isinstance(method, Method):
        return (method.with_options(**options) if options else method), given
    return build_method(method, options), given


_KINDS: dict[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    str: (str, "a name"),
    tuple[str, ...]: (list | tuple, "a list of names"),
}


def _damaged(what: str) -> CheckpointError:
    return CheckpointError(f"config.json has {what}; the directory is damaged or was edited")


def _listed(name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise _damaged(f"{name} {value!r}, which is not a list")
    return value


def _site(value: Any) -> Site:
    if isinstance(value, Site):
        return value
    try:
        site = Site(**{**value, "also": tuple(value.get("also", ()))})
        sound = (
            all(isinstance(path, str) for path in (site.path, *site.also, site.activation or ""))
            and site.role in get_args(Role)
            and type(site.channels) is int
            and type(site.signed) is bool
        )
    except (TypeError, AttributeError):
        sound = False
    if not sound:
        raise _damaged(f"a malformed site {value!r}")
    return site


def _record(value: Any) -> Record:
    if isinstance(value, Record):
        return value
    try:
        record = Record(**{"trains": value.get("stage") in _TRAINED, **value})
        figures = [record.results, *record.sites.values()]
        sound = isinstance(record.stage, str) and isinstance(record.settings, Mapping) and type(record.trains) is bool
        sound = sound and all(isinstance(x, int | float) for found in figures for x in found.values())
    except (TypeError, AttributeError):
        sound = False
    if not sound:
        raise _damaged("a malformed record of a stage")
    return record
