"""What a kernel has to know of a population: its parameters, worked out once for one number of time steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fas.kernels.interface.table import LARGEST, Table, table_of
from fas.neurons.adaptive_digit import ENOUGH, AdaptiveDigit
from fas.types import Neuron, Recursion

State = tuple[Tensor, Tensor]
"""Σ x and N of neurons before a step, each [*B, C]."""
_TENSORS = ("scale", "unit", "step_unit", "threshold", "v_init", "offset")


class _Words(dict[Any, Any]):
    """Addresses of tensors are among them: a copy, or what is saved, starts without any."""

    def __reduce__(self) -> Any:
        return _Words, ()


@dataclass(frozen=True, eq=False, slots=True)
class Code:
    """How activations become counts and counts become activations, for T time steps.

    The count of an activation x, even over time, is N = clip(⌊(x − μ) · scale + v_0⌋, lower, upper); the layers
    downstream receive N · unit + μ. All tensors are of shape (C,) or () and of one dtype. Where there is a table, N is
    what it has for that number. Neurons that adapt count g · x in the place of x, where g is the gain of the token, and
    what they send stands for (N · unit + μ)/g.

    Attributes:
        recursion: which neuron this is; None if it is none that the kernels know.
        timesteps: T.
        lower: smallest count.
        upper: largest count.
        scale: levels per unit of activation.
        unit: activation per level, θ / levels up to the threshold.
        step_unit: what a level of one step is worth where the mean over T steps is meant, T · unit.
        threshold: θ.
        v_init: v_0/θ.
        offset: μ.
        table: of a neuron of that recursion.
        adapts: the neuron that says the gain of every token; None where it is 1, or the caller's matter.
        words: what a kernel keeps for its next call.
    """

    recursion: Recursion | None
    timesteps: int
    lower: int
    upper: int
    scale: Tensor
    unit: Tensor
    step_unit: Tensor
    threshold: Tensor
    v_init: Tensor
    offset: Tensor
    table: Table | None = None
    adapts: AdaptiveDigit | None = None
    words: _Words = field(default_factory=_Words, init=False)

    @classmethod
    def of(cls, neuron: Neuron, timesteps: int, threshold: Tensor, v_init: Tensor, offset: Tensor) -> Code:
        """Work out the constants of a neuron model with parameters of shape (C,) or ()."""
        levels = neuron.resolution(timesteps)
        lower, upper = neuron.bounds(timesteps)
        recursion, table = recursion_of(neuron), None
        if recursion == "table":
            # A graph that is being compiled takes the neuron's own methods in.
            table = None if torch.compiler.is_compiling() else table_of(neuron, timesteps, threshold.device)
            recursion = recursion if table is not None else None
        return cls(
            recursion=recursion,
            timesteps=timesteps,
            lower=lower,
            upper=upper,
            scale=levels / threshold,
            unit=threshold / levels,
            step_unit=threshold * (timesteps / levels),
            threshold=threshold,
            v_init=v_init,
            offset=offset,
            table=table,
            adapts=neuron if isinstance(neuron, AdaptiveDigit) and recursion and upper >= ENOUGH else None,
        )

    @property
    def planes(self) -> int:
        """Planes of packed spikes: positive ones, and negative ones where there are any."""
        return self.table.planes if self.table is not None else 2 if self.lower < 0 else 1

    @property
    def in_bits(self) -> bool:
        """Whether spikes fit into one bit each, and counts into 16."""
        if self.recursion == "table":
            return self.table is not None and self.table.worth is not None
        return self.upper <= LARGEST and self.recursion in ("binary", "ternary")

    def map(self, function: Callable[[Tensor], Tensor]) -> Code:
        """Return the code with a function applied to every tensor."""
        tensors: dict[str, Any] = {name: function(getattr(self, name)) for name in _TENSORS}
        return replace(self, **tensors)


@dataclass
class Known:
    """Constants worked out earlier, and the parameters that they were worked out from."""

    code: Code
    values: tuple[Tensor, ...]
    versions: tuple[tuple[int, int], ...]
    # Those under which a kernel has made counts or means of an activation by itself.
    settings: tuple[object, ...] | None = None

    def made_of(self, parameters: tuple[Tensor, ...]) -> bool:
        """Whether parameters are still those."""
        now, then = parameters[0], self.values[0]
        if now.device != then.device or now.dtype != then.dtype:
            return False
        if now.is_cpu:
            return all(map(torch.equal, parameters, self.values))
        return self.versions == tuple(map(version_of, parameters))


def version_of(parameter: Tensor) -> tuple[int, int]:
    """Return where a tensor lies and how often it was changed in place (torch does not count in inference mode)."""
    return parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version


def recursion_of(neuron: Neuron) -> Recursion | None:
    """Return the recursion that a neuron model declares for itself; what it inherits it may have changed."""
    found: Recursion | None = vars(type(neuron)).get("recursion")
    return found
