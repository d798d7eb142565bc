"""What many tests make: a tiny model converted, random numbers of a seed, the spikes of a run."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tiny_cnns
import torch
from tiny_models import FAMILIES
from torch import Tensor

import fas
from fas.types import Method


def once(make: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate what makes a model: for the same arguments it runs once in a process, and every call gets a copy.

    Random numbers go on as if it had run each time. Arguments are told apart by what they look like in print.
    """
    kept: dict[str, tuple[Any, Tensor]] = {}

    @functools.wraps(make)
    def copied(*arguments: Any, **named: Any) -> Any:
        key = repr((arguments, sorted(named.items())))
        if key not in kept:
            kept[key] = make(*arguments, **named), torch.get_rng_state()
        model, state = kept[key]
        torch.set_rng_state(state)
        return copy.deepcopy(model)

    return copied


@once
def converted(
    name: str = "gpt2",
    method: type[Method] = fas.FAS,
    *,
    seeds: Sequence[int] = (3,),
    build: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Any:
    """Return a tiny model of a family, converted with T = 4.

    Args:
        name: of the family.
        method: class of the method.
        seeds: of the batches to calibrate on, one for each; none leaves it uncalibrated.
        build: options of the dense model.
        dtype: of the result; it is converted and calibrated in float32.
        options: of the method.
    """
    family = FAMILIES[name]
    batches = [family.batch(seed=seed) for seed in seeds]
    options = {"timesteps": 4, **options}
    return fas.convert(family.build(**(build or {})), method(**options), calibration=batches or None).to(dtype)


def converted_chain(method: Method, batches: Sequence[Mapping[str, Tensor]]) -> Any:
    """Return the small convolutional network without branches, converted and calibrated on images."""
    inputs = [{"x": batch["x"]} for batch in batches]
    return fas.convert(tiny_cnns.chain(), method, probe={"x": inputs[0]["x"][:1]}, calibration=inputs)


def generator(seed: int) -> torch.Generator:
    """Return random numbers of their own."""
    return torch.Generator().manual_seed(seed)


class Trains:
    """An observer that keeps the spikes of every step, by site."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Tensor]] = {}

    def observe(self, path: str, spikes: Tensor, timesteps: int) -> None:
        self.calls.setdefault(path, []).append(spikes.clone())
