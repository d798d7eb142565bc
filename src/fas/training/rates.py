"""The network of firing rates: every site passes its clipped input on, and thresholds follow running maxima."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fas.errors import CalibrationError, SiteError
from fas.layers.population import Population
from fas.surgery.probe import evaluating, hooked
from fas.surgery.replace import populations
from fas.training.descent import inputs_of

# Keeps Ω finite for a layer that is silent.
_SILENT = 1e-5
_SMALLEST = 1e-8


def omega(rate: Tensor) -> Tensor:
    """Return Ω = Σr/‖r‖², a scalar of at least 1: 1 where every neuron is silent or fires at every step."""
    return rate.sum() / (rate.square().sum() + _SILENT)


def rate_inference_loss(made: Tensor, target: Tensor, seen: Sequence[Tensor], weight: float) -> Tensor:
    """Return 1 − mean cos(made, target) over rows + λ · mean Ω over layers.

    Args:
        made: logits [*B, classes] of the network of rates.
        target: logits that it should give, no gradient.
        seen: rates of every layer.
        weight: λ.
    """
    distance = 1 - nn.functional.cosine_similarity(made, target, dim=-1, eps=1e-6).mean()
    return distance + weight * torch.stack([omega(rate) for rate in seen]).mean()


@dataclass(eq=False)
class Maxima:
    """Running maxima p ← (1 − m) p + m · max ReLU(x), from the first batch's own."""

    momentum: float
    values: dict[Population, Tensor] = field(default_factory=dict)

    def update(self, population: Population, x: Tensor) -> Tensor:
        """Return p of a population after ``x``."""
        top = x.detach().amax().clamp_min(0).float()
        known = self.values.get(population)
        self.values[population] = top if known is None else (1 - self.momentum) * known + self.momentum * top
        return self.values[population]


@contextmanager
def rates(
    model: Any, threshold: Callable[[Population], Tensor], maxima: Maxima | None = None
) -> Iterator[dict[Population, Tensor]]:
    """Let the model run as the network of rates: every site passes θ · clip(ReLU(x)/θ, 0, 1) on.

    x is what the neurons get: after a GELU that they replace, what the GELU would have got.

    Args:
        model: a converted model.
        threshold: θ of a site, () or (C,).
        maxima: told of every activation before it is clipped.

    Yields:
        The rates of the last pass by population.

    Raises:
        SiteError: a site of both signs, which a rate cannot carry.
    """
    seen: dict[Population, Tensor] = {}

    def clip(population: Any, arguments: Any, output: Tensor) -> Tensor:
        if population.neuron.signed:
            raise SiteError(f"{population.path} receives values of both signs; a firing rate is between 0 and 1")
        x = arguments[0].clamp_min(0)
        if maxima is not None:
            maxima.update(population, x)
        value = threshold(population).clamp_min(_SMALLEST)
        seen[population] = (x / value).clamp(max=1)
        return (seen[population] * value).to(output.dtype)

    hooks = hooked([population.register_forward_hook(clip) for population in populations(model).values()])
    with hooks, model.simulation.using(network="ann", observers=[]):
        yield seen


def running_maxima(
    model: Any, batches: Sequence[Mapping[str, Tensor]], share: float, momentum: float
) -> dict[Population, Tensor]:
    """Return p of every site over the batches, in a network whose sites clip at p · share as they go.

    Raises:
        CalibrationError: a site that is never above zero.
    """
    maxima = Maxima(momentum)
    with evaluating(model), rates(model, lambda p: maxima.values[p] * share, maxima):
        for batch in batches:
            model(**inputs_of(batch))
    return checked(model, maxima.values)


def checked(model: Any, maxima: dict[Population, Tensor]) -> dict[Population, Tensor]:
    """Refuse maxima of zero, and those that are not numbers.

    Raises:
        CalibrationError: a site that was never above zero or never reached, or received NaN or infinite values.
    """
    for path, population in populations(model).items():
        if population in maxima and not bool(maxima[population].isfinite()):
            raise CalibrationError(
                f"the input of {path} has NaN or infinite values; check the weights of the layers before it and the "
                "calibration data"
            )
        if population not in maxima or not bool(maxima[population] > 0):
            raise CalibrationError(
                f"site {path} is never above zero on the calibration data: use other data, or exclude the layer"
            )
    return maxima


class Thresholds:
    """What θ is while weights are trained: the running maximum times σ(s), or what it was.

    Args:
        model: a converted model.
        scale: s; None keeps the thresholds that the model has.
        momentum: of the running maximum.
    """

    def __init__(self, model: Any, scale: float | None, momentum: float) -> None:
        self._model = model
        self._kept = {p: p.threshold.detach() for p in populations(model).values()} if scale is None else None
        self._share = 1.0 if scale is None else float(torch.tensor(float(scale)).sigmoid())
        self._maxima = Maxima(momentum)

    def running(self) -> Any:
        """Let the model run as the network of rates."""
        return rates(self._model, self._value, self._maxima if self._kept is None else None)

    def _value(self, population: Population) -> Tensor:
        return self._maxima.values[population] * self._share if self._kept is None else self._kept[population]

    def settle(self) -> None:
        """Set the thresholds that the training ended with; v_0 = 0 after a running maximum, no offset.

        Raises:
            CalibrationError: a site that was never above zero.
        """
        if self._kept is None:
            for population, top in checked(self._model, self._maxima.values).items():
                population.set(top * self._share, torch.zeros_like(top), torch.zeros_like(top))
        self._model.reset()
