"""Where tensors go inside a forward: who reads what, and what can never be negative."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

# Functions that commute with x → max(x, 0): a neuron after them may stand for a ReLU in front of them.
RESHAPES = frozenset(
    "flatten view reshape unflatten squeeze unsqueeze permute transpose movedim contiguous dropout dropout2d "
    "dropout1d feature_dropout clone to".split()
)
POOLS = frozenset("max_pool2d adaptive_max_pool2d max_pool1d".split())

_CLIPPED = frozenset("relu relu_ relu6 sigmoid sigmoid_ softmax abs square hardsigmoid softplus exp".split())
_KEEPING = (
    RESHAPES
    | POOLS
    | frozenset(
        "avg_pool2d adaptive_avg_pool2d mean sum cat stack chunk split __getitem__ interpolate pixel_shuffle "
        "channel_shuffle amax max maximum".split()
    )
)
# These keep the sign where every number among their arguments is non-negative.
_SCALING = frozenset(
    "add add_ __add__ __iadd__ __radd__ mul mul_ __mul__ __rmul__ __imul__ div div_ __truediv__ pad".split()
)


@dataclass(frozen=True, eq=False)
class Step:
    """One call of a torch function.

    Attributes:
        name: of the function.
        inputs: tensors among its arguments.
        output: its (first) result.
        layer: dotted name of the watched layer in which it happened, None outside of all.
    """

    name: str
    inputs: tuple[Tensor, ...]
    output: Tensor
    layer: str | None


@dataclass(eq=False)
class Flow(TorchFunctionMode):
    """Notes every call of a torch function while the mode is on; tensors stay alive, so identities are unique.

    Attributes:
        steps: the calls in order.
        layer: dotted name of the watched layer that is running.
    """

    steps: list[Step] = field(default_factory=list)
    layer: str | None = None

    def __post_init__(self) -> None:
        super().__init__()
        self._positive: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function and note it, if its result is a tensor."""
        kwargs = kwargs or {}
        inputs = tuple(_tensors((args, tuple(kwargs.values()))))
        # Before the call: in place, what is read is also what is written.
        positive = all(id(x) in self._positive for x in inputs)
        result = func(*args, **kwargs)
        output = next(_tensors((result,)), None)
        if output is None:
            return result
        name = getattr(func, "__name__", str(func))
        self.steps.append(Step(name, inputs, output, self.layer))
        keeps = name in _KEEPING or (name in _SCALING and all(x >= 0 for x in _numbers(args, kwargs)))
        clamped = name in ("clamp", "clamp_", "clamp_min", "hardtanh") and _lowest(args, kwargs) >= 0
        for made in _tensors((result,)):
            if name in _CLIPPED or clamped or (keeps and positive and inputs):
                self._positive[id(made)] = made
            else:
                self._positive.pop(id(made), None)
        return result

    def nonnegative(self, x: Tensor) -> bool:
        """Whether a tensor cannot be negative, whatever the input: made by ReLU and what keeps its sign."""
        return id(x) in self._positive

    def reaches(self, x: Tensor, since: int, passing: frozenset[str]) -> set[tuple[int, str | None]]:
        """Return where a tensor ends up after steps that may pass it on.

        Args:
            x: a tensor.
            since: number of steps when it had been made.
            passing: names of functions that hand a tensor on to be followed further.

        Returns:
            Pairs of the identity of the tensor that is read, and the layer that reads it (None: something else).
        """
        ends: set[tuple[int, str | None]] = set()
        for i, step in enumerate(self.steps[since:], start=since):
            if not any(x is read for read in step.inputs):
                continue
            if step.layer is None and step.name in passing:
                # A dropout that does nothing returns what it has been given.
                if step.output is not x:
                    ends |= self.reaches(step.output, i + 1, passing)
            else:
                ends.add((id(x), step.layer))
        return ends


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _numbers(args: Any, kwargs: Any) -> list[float]:
    return [x for x in (*args, *kwargs.values()) if isinstance(x, int | float) and not isinstance(x, bool)]


def _lowest(args: Any, kwargs: Any) -> float:
    bound = kwargs.get("min", kwargs.get("min_val", args[1] if len(args) > 1 else None))
    return float(bound) if isinstance(bound, int | float) else float("-inf")
