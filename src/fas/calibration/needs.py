"""About what a conversion will take, from the shape of the model: time, memory, disk."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fas.calibration.teacher import neuron_tensors
from fas.surgery.sites import block_of
from fas.types import Batches, Method
from fas.words import size, span

logger = logging.getLogger(__name__)

# Forward passes over the calibration tokens: the inputs of four sites in two networks, and the way on; and how much
# longer than one large product of matrices the products of a network take, with all that lies between them.
_PASSES, _SLOWER = 5, 2
# Tokens whose gradients tell what errors cost, those in memory together, and what forward and back take of forward.
_ANSWERS, _TOGETHER, _BACKWARD = 1024, 512, 3
# Rows that are kept of a site, bytes that they may take, and arrays of that size while a fit computes.
_ROWS, _MOST, _ARRAYS = 16384, 1 << 28, 9
# Seconds that the fit of one value takes on one thread, and bytes of Python, torch and transformers themselves.
_FIT, _PROGRAM = 45e-9, 400 << 20


@dataclass(frozen=True)
class Needs:
    """What a conversion is expected to take; right within a factor of two or so.

    Attributes:
        seconds: on this machine if it does nothing else.
        memory: most resident bytes of the process.
        disk: bytes of the directory that is written.
        parameters, sites, channels, tokens: what this was computed from.
    """

    seconds: float
    memory: int
    disk: int
    parameters: int
    sites: int
    channels: int
    tokens: int

    def __str__(self) -> str:
        shape = f"{self.parameters / 1e6:,.4g} million parameters, {self.sites} sites of {self.channels:,} channels"
        return (
            f"about {span(self.seconds)} on an idle machine, {size(self.memory)} of memory, {size(self.disk)} on the "
            f"disk ({shape}, {self.tokens:,} tokens)"
        )


def estimate_conversion(
    model: Any, tokens: int, method: Method | None = None, *, streamed: bool = False, budget: int = 0
) -> Needs:
    """Estimate what converting and calibrating a model takes, without doing it.

    Args:
        model: a transformers model, converted or not; its weights may be on the meta device.
        tokens: to calibrate on.
        method: the recipe, where the model is still dense.
        streamed: whether one block is in memory at a time.
        budget: bytes of hidden states held in memory when streamed.

    Example:
        >>> print(fas.estimate_conversion(model, 8192, fas.FAS()))  # doctest: +SKIP
        about 7 s on an idle machine, 562.5 MiB of memory, 8.6 MiB on the disk (2.242 million parameters, 17 sites ...)
    """
    sites = model.sites if method is None else method.select(model)
    added = {id(x) for x in neuron_tensors(model)} if method is None else set()
    weights = {name: x for name, x in model.named_parameters() if id(x) not in added}
    parameters = sum(x.numel() for x in weights.values())
    inside = sum(x.numel() for name, x in weights.items() if x.ndim > 1 and block_of(name))
    channels, widest = sum(site.channels for site in sites), max(site.channels for site in sites)
    rows = min(tokens, _ROWS)
    work = (inside or parameters) * _PASSES * tokens + parameters * _BACKWARD * min(tokens, _ANSWERS)
    seconds = _SLOWER * work * _seconds_per_product() + _FIT * channels * rows / torch.get_num_threads()
    stored = sum(x.numel() * x.element_size() for x in weights.values()) + 4 * 3 * channels
    config = model.config.get_text_config()
    hidden = 8 * tokens * int(getattr(config, "hidden_size", None) or widest)
    held = _ARRAYS * min(4 * rows * widest, _MOST)
    if streamed:
        resident = 8 * _largest_part(weights) + min(hidden, budget)
    else:
        gradients = 4 * _TOGETHER * (3 * int(getattr(config, "vocab_size", 0) or 0) + 8 * channels)
        resident = 4 * parameters + max(hidden, gradients - held)
    return Needs(seconds, _PROGRAM + resident + held, stored, parameters, len(sites), channels, tokens)


def tell(what: str, model: Any, batches: Batches, method: Method | None = None, **options: Any) -> None:
    """Log what calibration or streaming will take, where somebody listens: the estimate itself takes a moment."""
    if logger.isEnabledFor(logging.INFO):
        tokens = sum(next(iter(batch.values())).numel() for batch in batches)
        logger.info("%s takes %s", what, estimate_conversion(model, tokens, method, **options))


def _largest_part(weights: dict[str, Tensor]) -> int:
    """Return the parameters of the largest block, or of the largest tensor outside of all blocks."""
    parts: dict[str, int] = {}
    for name, x in weights.items():
        part = block_of(name) or name
        parts[part] = parts.get(part, 0) + x.numel()
    return max(parts.values())


def _seconds_per_product() -> float:
    """Return what one multiply-add takes in a product of matrices on this machine, other work on it left out."""
    x, w = torch.ones(256, 1024), torch.ones(1024, 1024)
    took = []
    for _ in range(4):
        began = time.process_time()
        x @ w
        took.append(time.process_time() - began)
    return min(took) / torch.get_num_threads() / (x.numel() * len(w))
