"""What errors and spikes cost at every site, and the price at which a network sends as many spikes as asked for."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from fas.calibration.fit import Fit, counted, drive, mean_spikes
from fas.calibration.fit_sparse import SpikeCost
from fas.calibration.sensitivity import sensitivities
from fas.calibration.walk import dense_inputs
from fas.surgery.replace import populations
from fas.types import Site

logger = logging.getLogger(__name__)

# Answers that tell what errors cost: with four times as many the codes of a language model of 135 million parameters
# were no better.
_ANSWERS = 1024
# Tokens whose gradients are in memory together.
_AT_A_TIME = 512
# Rows of a site that tell how many spikes a price leaves, in all batches together.
_ROWS = 512
# Prices between which one is looked for and that of the first try, nats per spike per neuron, and how near the spikes
# must come.
_CHEAPEST, _DEAREST, _FIRST, _NEAR, _ROUNDS = 1e-5, 10.0, 0.01, 0.01, 16

Fitting = Callable[[Site, Tensor, SpikeCost | None], Fit]
"""Fits the neurons of a site to inputs [n, C], at a price where it has one."""


def costs_of(
    model: Any, batches: Sequence[Mapping[str, Tensor]], price: float | None, spikes: float | None, fit: Fitting
) -> dict[str, SpikeCost]:
    """Return what errors and spikes cost at every site in front of layers, by path.

    Factors of attention pay no price: their errors add up over all keys, which no price of single errors knows.

    Args:
        model: a converted model; its dense network runs, with the memory of a training step on a row or two.
        batches: inputs of its forward.
        price: nats per answer that one spike per neuron and window may cost; None finds it.
        spikes: per neuron and window, in the mean over all neurons: what the price is found by.
        fit: how the neurons of a site are fitted.

    Raises:
        CalibrationError: no batches, or answers without logits.
    """
    errors = sensitivities(model, list(_parts(batches)), max_answers=_ANSWERS)
    neurons = sum(site.channels for site in model.sites)

    def priced(price: float) -> dict[str, SpikeCost]:
        return {site.path: SpikeCost(errors[site.path], price / neurons) for site in model.sites if site.layers}

    if spikes is None:
        assert price is not None
        return priced(price)
    rows, steps, found = dense_inputs(model, batches, _ROWS), model.timesteps, populations(model)

    def sent(price: float) -> float:
        costs, spikes = priced(price), 0.0
        for site in model.sites:
            neuron = found[site.path].neuron
            # Experts that no token reaches send nothing.
            if len(x := drive(rows[site.path], neuron.bounds(steps))):
                counts, _ = counted(x, fit(site, x, costs.get(site.path)), neuron, steps)
                spikes += mean_spikes(counts, neuron, steps) * site.channels
        return spikes / neurons

    return priced(price_of(spikes, sent))


def _parts(batches: Sequence[Mapping[str, Tensor]]) -> Iterator[Mapping[str, Tensor]]:
    """Yield batches in few rows each: gradients of 4,096 answers from 262,144 words would take 20 GiB."""
    for batch in batches:
        rows = {len(value) for value in batch.values()}
        if len(rows) != 1 or "input_ids" not in batch:
            yield batch
            continue
        size = max(1, _AT_A_TIME // batch["input_ids"][0].numel())
        for first in range(0, rows.pop(), size):
            yield {name: value[first : first + size] for name, value in batch.items()}


def price_of(spikes: float, sent: Callable[[float], float]) -> float:
    """Return the price at which so many spikes per neuron are sent, which fall with it."""
    low, high, price = math.log(_CHEAPEST), math.log(_DEAREST), math.log(_FIRST)
    for _ in range(_ROUNDS):
        found = sent(math.exp(price))
        if abs(found / spikes - 1) <= _NEAR:
            return math.exp(price)
        low, high = (price, high) if found > spikes else (low, price)
        # Spikes fall by about a third of themselves where the price is five times as high.
        price = min(max(price + 4 * math.log(max(found, 1e-9) / spikes), (3 * low + high) / 4), (low + 3 * high) / 4)
    logger.warning(
        "%.3g spikes per neuron were asked for, and at a price of %.2g nats it is %.3g: other steps or another neuron "
        "reach further", spikes, math.exp(price), found,
    )  # fmt: skip
    return math.exp(price)
