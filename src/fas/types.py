"""The words of the library as types: what a spiking site is and what a measured figure is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, get_args

from fas.checks import check_choice, check_whole

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

Role = Literal["mlp", "linear_input", "conv_input", "query", "key", "value", "attention_weight"]
Coverage = Literal["mlp", "linear", "full"]
Network = Literal["ann", "quantised", "snn"]
Schedule = Literal["layerwise", "online"]
Operators = Literal["difference", "instant"]
Execution = Literal["collapsed", "stepped"]
Granularity = Literal["channel", "tensor"]
Emission = Literal["binary", "ternary", "graded", "digits"]
Recursion = Literal["binary", "ternary", "graded", "table"]
Origin = Literal["measured", "estimated", "published"]


OPERANDS: tuple[Role, ...] = ("query", "key", "value", "attention_weight")
"""Roles of the factors of the two products in attention, in the order in which they are made."""

V_INIT_MAX = 1 - 2**-20
"""Largest initial membrane potential v_0/θ: no neuron starts at its threshold, in float32 either."""


@dataclass(frozen=True)
class Site:
    """A place where an activation becomes spikes: the input of a linear layer or a factor in attention.

    Attributes:
        path: dotted name of the linear layer inside the model, or ``<attention module>.operands.<role>``.
        also: dotted names of further linear layers that read the very same input (key and value beside
            query, up beside gate): one population of neurons drives them all.
        role: ``mlp`` where the input is the (gated) activation of an MLP, ``linear_input`` of another linear
            layer, ``conv_input`` of a convolution; ``query``, ``key``, ``value`` or ``attention_weight`` of an
            attention module.
        channels: length of per-channel thresholds: input features or channels of the layer, heads times width of a head
            of query, key and value, heads of the attention weights.
        signed: whether the input takes both signs, so that the neuron needs negative spikes.
        activation: dotted name of the activation that the neuron replaces, else None.
    """

    path: str
    role: Role
    channels: int
    signed: bool = True
    activation: str | None = None
    also: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """Dotted names of every linear layer that the site drives; none for a factor in attention."""
        return () if self.role in OPERANDS else (self.path, *self.also)


@dataclass(frozen=True)
class Measurement:
    """One figure with its unit, origin and the conditions under which it holds.

    ``conditions`` carries what a reader needs to compare two figures: model, method, coverage,
    network, schedule, execution, timesteps, levels, data, command, versions.
    """

    quantity: str
    value: float
    unit: str
    origin: Origin = "measured"
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def finite(value: Any) -> Any:
    """Return what JSON can hold: None in place of infinity and NaN, at any depth of mappings, lists and tuples."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


class Neuron(ABC):
    """A neuron model: how an activation becomes spikes. A frozen dataclass without tensors.

    Symbols: at step t = 1…T, x_t input current, v_t membrane potential, s_t spikes, N_t = Σ s_i count; θ threshold.

    Attributes:
        signed: whether counts below zero exist.
        exact_when: inputs for which the count after T steps is the quantised value: ``even`` over time, ``any``.
        emission: what one spike stands for: one threshold (``binary``, or ``ternary`` where it has a sign), a
            whole number of them (``graded``), or what the step says (``digits``, sent after the window). A class
            that declares nothing counts as the general case of its kind.
        takes_back: whether negative spikes occur where counts are not negative (falling input, signed digits).
        adapts: whether thresholds follow the token (``gain``).
        recursion: which of the neurons that ``fas.kernels`` knows this one is, declared by the class itself; a
            neuron that declares none runs by its own methods. ``table``, for digits: the kernels look up what
            ``window`` and ``spikes`` make of every count.
        spike_price: of a code with levels to spare (``calibration.fit_range``), the nats per answer that one spike per
            neuron and window may cost where calibration is told no price.
    """

    signed: bool
    exact_when: ClassVar[Literal["even", "any"]]
    emission: ClassVar[Emission] = "digits"
    takes_back: ClassVar[bool] = True
    adapts: ClassVar[bool] = False
    recursion: ClassVar[Recursion | None] = None
    spike_price: ClassVar[float] = 0.0

    def own_fields(self: Any) -> dict[str, Any]:
        """Return the fields that differ from their defaults; the sign is the site's."""
        plain = {one.name: one.default for one in fields(self) if one.default is not MISSING}
        return {name: v for name, v in asdict(self).items() if name != "signed" and v != plain.get(name, MISSING)}

    @property
    def even_levels(self) -> bool:
        """Whether every whole number within the bounds is a count."""
        return True

    def resolution(self, timesteps: int) -> int:
        """Return the number of levels between zero and the threshold after T steps."""
        return timesteps

    def bounds(self, timesteps: int) -> tuple[int, int]:
        """Return the smallest and the largest count after T steps."""
        most = self.resolution(timesteps)
        return (-most if self.signed else 0), most

    def levels(self, timesteps: int) -> int:
        """Return how many counts there are after T steps, zero and both signs included."""
        lower, upper = self.bounds(timesteps)
        return upper - lower + 1

    def settle(self, levels: Tensor, timesteps: int) -> Tensor:
        """Return the count after T steps of even input.

        Args:
            levels: ⌊x/θ · ``resolution(T)`` + v_0/θ⌋, whole numbers held as floats, any shape.
            timesteps: T.
        """
        return levels.clamp(*self.bounds(timesteps))

    def gain(self, levels: Tensor, most: int) -> Tensor:
        """Return by what tokens [*B, C], in levels, are multiplied, [*B, 1]; ``most`` is the largest count."""
        return levels.new_ones(*levels.shape[:-1], 1)

    def unadapted(self) -> Neuron:
        """Return the neuron for sites that hold no tokens: factors in attention, images."""
        return self

    @abstractmethod
    def window(self, drive: Tensor, v_init: Tensor, timesteps: int) -> Tensor:
        """Return the counts N_t, t = 1…T, for input that is even over time.

        Args:
            drive: x/θ [*B, C], the current of every step in thresholds.
            v_init: v_0/θ, broadcastable.
            timesteps: T.

        Returns:
            [T, *B, C], in levels: the count at T stands for N_T · θ / ``resolution(T)``.
        """

    @abstractmethod
    def spikes(self, count: Tensor, timesteps: int) -> Tensor:
        """Return how many spikes a window of even input takes to reach a count, shape of ``count``."""


class RateNeuron(Neuron):
    """A neuron that fires while its input arrives, every spike worth one threshold. Reset is soft.

    v_t = v_{t-1} + x_t − θ s_t. With F_t = ⌊(v_0 + x_1 + … + x_t)/θ⌋ every such neuron here is a recursion
    on F and N alone (``scan``), which needs one floor per step and no membrane potential.
    """

    emission: ClassVar[Emission] = "graded"

    @abstractmethod
    def step(
        self, current: Tensor, potential: Tensor, count: Tensor, threshold: Tensor, timesteps: int
    ) -> tuple[Tensor, Tensor]:
        """Advance one time step by definition; the readable truth that ``scan`` is tested against.

        Args:
            current: input x_t, shape [*B, C], in the unit of the activation.
            potential: v_{t-1}, same shape and unit.
            count: N_{t-1}, same shape, dimensionless.
            threshold: θ, broadcastable to [*B, C], in the unit of the activation.
            timesteps: T, the length of the window.

        Returns:
            The spikes s_t and the membrane potential v_t, both [*B, C].
        """

    @abstractmethod
    def scan(self, levels: Tensor, count: Tensor, timesteps: int) -> Tensor:
        """Return the counts N_t for t in a stretch of the window.

        Args:
            levels: F_t, shape [n, *B, C], whole numbers held as floats.
            count: count before the stretch, shape [*B, C].
            timesteps: T, the length of the whole window.

        Returns:
            N_t, shape [n, *B, C].
        """

    def window(self, drive: Tensor, v_init: Tensor, timesteps: int) -> Tensor:
        """Return the counts for even input, F_t = ⌊t · x/θ + v_0/θ⌋."""
        time = drive.new_tensor(range(1, timesteps + 1)).view(-1, *[1] * drive.ndim)
        return self.scan((time * drive + v_init).floor(), drive.new_zeros(drive.shape), timesteps)

    def spikes(self, count: Tensor, timesteps: int) -> Tensor:
        """Even input never turns back: as many spikes as the count is away from zero."""
        return count.abs()


@dataclass(frozen=True)
class Record:
    """What a stage did, kept beside the weights.

    Attributes:
        stage: file name of the stage.
        settings: the stage's own fields.
        results: figures about the whole model (tokens, seconds, mean relative error).
        sites: figures per site, by path.
        trains: whether the stage trained the quantised network (see ``Stage.trains``).
    """

    stage: str
    settings: Mapping[str, Any]
    results: Mapping[str, float]
    sites: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    trains: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


Progress = Callable[[str, int, int], None]
"""Receives what is being done, how many parts are done and how many there are."""


Batches = Sequence[Mapping[str, "Tensor"]]
"""Inputs of a model's forward, by name."""


class Kept(Protocol):
    """What a stage has finished, part by part, where the stage is to resume after an interruption."""

    @property
    def directory(self) -> Path:
        """Where the stage may keep files of its own."""

    def found(self, part: str) -> tuple[Any, dict[str, Tensor]] | None:
        """Return what an earlier run has found in a part, value and tensors; None if it is still to do."""

    def add(self, part: str, value: Any, tensors: Mapping[str, Tensor]) -> None:
        """Keep what has been found in a part: a value in JSON types, and tensors by name."""


class Stage(ABC):
    """One step of a method that changes parameters: a frozen dataclass whose fields are its settings.

    Attributes:
        prepares: whether it belongs before stage 1 only, since it sets again what training finds.
        trains: whether it trains the thresholds of the quantised network, which later stages then keep.
    """

    prepares: ClassVar[bool] = False
    trains: ClassVar[bool] = False

    def record(self, results: Mapping[str, float], sites: Mapping[str, Mapping[str, float]] | None = None) -> Record:
        """Return what a run of this stage did: its figures, beside its name and its settings."""
        name = type(self).__module__.rpartition(".")[2]
        return Record(name, asdict(self), results, sites or {}, self.trains)  # type: ignore[call-overload]

    @abstractmethod
    def run(self, model: Any, batches: Batches, progress: Progress | None = None, kept: Kept | None = None) -> Record:
        """Change the model's parameters in place and say what was done; an error leaves them as they were.

        Args:
            model: a converted model.
            batches: inputs of the model's forward, in memory.
            progress: told after each part.
            kept: parts that an interrupted run has finished, which are not done again; takes those of this one.

        Raises:
            CalibrationError: no batches, or batches on which the model gives NaN or infinite values.
        """


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A named recipe: what spikes, with which neurons, and the stages that set their parameters.

    A frozen dataclass; its fields are its options everywhere (keyword arguments, JSON, command line). A subclass adds
    fields of its own and gives these other defaults.

    Attributes:
        timesteps: T, time steps of the spiking network.
        levels: L of the quantised network; those of the neuron at T if not given.
        coverage: ``mlp`` (the layer after every MLP activation) or ``linear`` (the input of every linear layer).
        granularity: parameters of neurons per ``channel`` or per ``tensor``.
        schedule: ``layerwise`` or ``online``.
        operators: ``difference`` or ``instant``, for the online schedule.
        execution: ``collapsed`` or ``stepped``, for the layerwise schedule.
        replace_activation: the neuron replaces GELU, SiLU or tanh too; needs stage 1. ReLU always is, at no loss.
        exclude: shell patterns of layers to leave dense.

    Raises:
        ValueError: a value outside its range; the message names it.
    """

    timesteps: int = 8
    levels: int | None = None
    coverage: Coverage = "linear"
    granularity: Granularity = "channel"
    schedule: Schedule = "layerwise"
    operators: Operators = "difference"
    execution: Execution = "collapsed"
    replace_activation: bool = False
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_whole("timesteps", self.timesteps)
        if self.levels is not None:
            check_whole("levels", self.levels)
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), get_args(choices))
        exclude: Any = self.exclude
        if isinstance(exclude, str):
            raise ValueError(f"exclude is the string {exclude!r}; expected a list of patterns: [{exclude!r}]")
        object.__setattr__(self, "exclude", tuple(exclude))

    @property
    def gated(self) -> bool:
        """Whether gated populations take the place of softmax, normalisation and activations."""
        return False

    @abstractmethod
    def select(self, model: Any, probe: Mapping[str, Any] | None = None) -> list[Site]:
        """Return the sites of a model that spike."""

    @abstractmethod
    def build(self, site: Site) -> Neuron:
        """Return the neuron model at a site.

        Raises:
            SiteError: values of both signs, which the neuron cannot carry.
        """

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """Return the stages that need no training, in order."""

    def tuning(self) -> tuple[Stage, ...]:
        """Return the stages that follow the training of the quantised network and keep its thresholds."""
        return ()

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """Return the names of the fields."""
        return tuple(field.name for field in fields(cls))

    def with_options(self, **options: Any) -> Self:
        """Return the method with other options."""
        return replace(self, **options)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON types."""
        values = {name: getattr(self, name) for name in self.options()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


_CHOICES = {
    "coverage": Coverage,
    "granularity": Granularity,
    "schedule": Schedule,
    "operators": Operators,
    "execution": Execution,
}
