"""The configuration that a converted model carries in its config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, get_args, get_type_hints

from transformers.utils.quantization_config import QuantizationConfigMixin

from fas import registry
from fas._version import __version__
from fas.errors import CheckpointError
from fas.layers.simulation import Weights
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
        method: name of the method, a file of ``fas.methods``.
        sites: the sites; None to find them in the model.
        records: what the stages did.
        data: name of the data that thresholds were calibrated on, where they have one.
        format: layout of the directory.
        version: release that wrote it.
        weights: ``float`` or ``int8``: what inference multiplies with. The file holds float weights either way, and
            which kernels compute is no part of a model: that depends on the machine.
        quant_method: always ``fas``.
        options: fields of the method (``timesteps``, ``coverage``, …).

    Raises:
        ValueError: unknown method, option or value.
        CheckpointError: a format that this release does not read; of another release, what this one does not know;
            sites or records that are malformed, or sites without the time steps that they were calibrated for.
    """

    def __init__(
        self,
        /,
        method: str = "fas",
        *,
        sites: Sequence[Any] | None = None,
        records: Sequence[Any] = (),
        data: str | None = None,
        format: int = FORMAT,
        version: str = __version__,
        weights: Weights = "float",
        quant_method: str = "fas",
        **options: Any,
    ) -> None:
        if format != FORMAT:
            raise CheckpointError(
                f"the model was written by fas {version} in format {format}, this is fas {__version__} with "
                f"format {FORMAT}: install a release that reads it, or convert the dense model again"
            )
        self.quant_method = quant_method
        self.method = method
        try:
            self.recipe: Method = build_method(method, options)
        except ValueError as error:
            if version == __version__:
                raise
            raise CheckpointError(
                f"the model was written by fas {version}, this is fas {__version__}: {error}; install a release that "
                "reads it, or convert the dense model again"
            ) from None
        self.sites = None if sites is None else [_site(site) for site in _listed("sites", sites)]
        if self.sites == []:
            raise CheckpointError("config.json has an empty list of sites; the directory is damaged or was edited")
        # Fields that are younger than the directory have their default; this one every release has written.
        if self.sites is not None and "timesteps" not in options:
            raise CheckpointError(
                "config.json names sites but no timesteps, which their thresholds were set for; the directory is "
                "damaged or was edited"
            )
        self.records = [_record(record) for record in _listed("records", records)]
        self.data = data if isinstance(data, str) else None
        self.format, self.version = format, version
        if weights not in get_args(Weights):
            raise ValueError(f"weights is {weights!r}; choose one of {', '.join(get_args(Weights))}")
        self.weights: Weights = weights

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types, from which the constructor builds the same configuration."""
        return {
            "quant_method": self.quant_method,
            "method": self.method,
            "format": self.format,
            "version": __version__,
            "weights": self.weights,
            **asdict(self.recipe),  # type: ignore[call-overload]
            "exclude": list(getattr(self.recipe, "exclude", ())),
            "sites": None if self.sites is None else [asdict(site) for site in self.sites],
            "records": [record.to_dict() for record in self.records],
            "data": self.data,
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
    if not isinstance(name, str):
        raise ValueError(f"method is {name!r}; expected a name: {', '.join(registry.available('methods'))}")
    cls = registry.load("methods", name)
    known = [field.name for field in fields(cls)]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"method {name!r} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    hints = get_type_hints(cls)
    for option, value in options.items():
        kind, expected = _KINDS.get(hints[option], (object, ""))
        # A boolean is a number to Python, and "no" is true.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind in (int, int | float)):
            raise ValueError(f"{option} is {value!r}; expected {expected}")
    method: Method = cls(**options)
    return method


_KINDS: dict[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    str: (str, "a name"),
    tuple[str, ...]: (list | tuple, "a list of names"),
}


def _listed(name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise CheckpointError(
            f"config.json has {name} {value!r}, which is no list; the directory is damaged or was edited"
        )
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
        raise CheckpointError(f"config.json has a malformed site {value!r}; the directory is damaged or was edited")
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
        raise CheckpointError("config.json has a malformed record of a stage; the directory is damaged or was edited")
    return record
