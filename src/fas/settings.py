"""How a converted model runs: every setting with its values, in one list that all others read."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_type_hints

from fas.checks import check_choice, check_whole
from fas.types import Execution, Network, Operators, Schedule

Weights = Literal["float", "int8"]
Kernels = Literal["auto", "torch", "cpu", "triton", "naive"]

VARIABLE = "FAS_KERNELS"
"""Environment variable that names the kernels of models made from then on."""

# Of one run on one machine: config.json does not hold them.
_NOT_SAVED = {"saved": False}


def default_kernels() -> Kernels:
    """Return the kernels that the environment names, else ``auto``.

    Raises:
        ValueError: an unknown name.
    """
    name: Any = os.environ.get(VARIABLE, "auto")
    check("kernels", name, VARIABLE)
    return cast(Kernels, name)


@dataclass
class Settings:
    """How a converted model runs. A change takes effect at the next call.

    A further setting is a field here; models then have it as an attribute, save it and load it.

    Attributes:
        network: ``ann`` (activations pass unchanged), ``quantised`` (QCFS with ``levels``) or ``snn``.
        timesteps: T ≥ 1, time steps of the spiking network. Thresholds stay those of the T that was calibrated, which
            another T runs worse with: from 8 to 4, 1.37 × the dense perplexity where calibration for 4 gives 1.24
            (embedded model, linear, signed_if). ``fas.calibrate`` after a change.
        levels: L ≥ 1, levels of the quantised network between zero and the threshold.
        schedule: ``layerwise`` (a layer finishes its window before the next begins) or ``online`` (all layers at once).
        operators: ``difference`` or ``instant``, online only: whether the wires between layers carry
            running means over time, to which any operator applies unchanged, or the values of each step.
        execution: ``collapsed`` (one pass on counts) or ``stepped`` (every step), layerwise only.
        weights: ``float``, as they are, or ``int8``: spike counts times 8-bit weights, layerwise, without gradients.
        kernels: the backend, ``auto`` for the fastest possible one; gradients and compiled models use torch.

    Raises:
        ValueError: a value outside its range; the message names it.
    """

    network: Network = field(default="snn", metadata=_NOT_SAVED)
    timesteps: int = 8
    levels: int = 8
    schedule: Schedule = "layerwise"
    operators: Operators = "difference"
    execution: Execution = "collapsed"
    weights: Weights = "float"
    kernels: Kernels = field(default_factory=default_kernels, metadata=_NOT_SAVED)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check(name, value)

    def saved(self) -> dict[str, Any]:
        """Return what config.json holds."""
        return {name: getattr(self, name) for name in SAVED}

    def set_timesteps(self, timesteps: int, resolution: Callable[[int], int], *, trained: bool) -> None:
        """Let T change, and L with it if it was the neuron's own at T; trained thresholds keep the L they have.

        Args:
            timesteps: T from now on.
            resolution: levels of the neuron between zero and the threshold after T steps.
            trained: whether the thresholds have been trained, at the present L.
        """
        check("timesteps", timesteps)
        follows = self.levels == resolution(self.timesteps) and not trained
        self.timesteps = timesteps
        if follows:
            self.levels = resolution(timesteps)


SETTINGS = tuple(field.name for field in fields(Settings))
SAVED = tuple(field.name for field in fields(Settings) if field.metadata.get("saved", True))


@functools.cache
def _kinds() -> dict[str, Any]:
    return get_type_hints(Settings)


def check(name: str, value: Any, called: str | None = None) -> None:
    """Refuse a value that a setting cannot have.

    Raises:
        ValueError: such a value.
    """
    choices = get_args(_kinds()[name])
    if choices:
        check_choice(called or name, value, choices)
    else:
        check_whole(called or name, value)


def _attribute(name: str) -> property:
    def read(holder: Any) -> Any:
        return getattr(holder.in_force, name)

    def write(holder: Any, value: Any) -> None:
        check(name, value)
        setattr(holder.in_force, name, value)

    return property(read, write, doc=f"See ``fas.settings.Settings.{name}``.")


if TYPE_CHECKING:
    Exposed = Settings
else:

    class Exposed:
        """Gives objects every setting as an attribute, of what they call ``in_force``."""

    for _name in SETTINGS:
        setattr(Exposed, _name, _attribute(_name))
