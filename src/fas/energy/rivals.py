"""Dense networks that a spiking one is measured against: integer twins of few bits, and one that skips small inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fas.energy.count import counts_of
from fas.energy.operations import Counts
from fas.layers.population import Population
from fas.surgery.probe import evaluating, hooked
from fas.surgery.replace import populations
from fas.types import Batches, Progress

Send = Callable[[Population, Tensor], Tensor]
"""What a site sends in place of its spikes, of its neurons and its input [*B, C]."""
BEST = "best_twin"
BITS = (4, 6, 8)
"""Of the twins that are measured whether they reach the spiking network or not."""
# Bits of the best twin at most, and how much worse than the spiking network's its perplexity may be: rounding moves it
# as far.
_MOST, _SAME = 16, 1.001
# Halvings of the range in which the share of zeros is sought, and its upper end.
_HALVINGS, _SPARSEST = 6, 0.98
# Values of a site that its quantiles are taken from.
_KEPT = 1 << 16


@dataclass(frozen=True)
class Rival:
    """One measured network.

    Attributes:
        name: ``twin_<bits>``, ``best_twin`` or ``sparse``.
        score: its perplexity.
        bits: of its activations; None where they are floats.
        counts: of its run, on what the others ran on.
        share: of activations that are below the threshold of their site, where there is one.
    """

    name: str
    score: float
    bits: int | None
    counts: Counts
    share: float | None = None


def measure_rivals(
    model: Any,
    score: Callable[[], float],
    batches: Batches,
    calibration: Batches,
    *,
    new_tokens: int = 0,
    progress: Progress | None = None,
) -> tuple[dict[str, float], list[Rival]]:
    """Measure the networks that reach what the spiking one does, and what each of them leaves out.

    *Twins* round what a site receives to b bits: with the units u_c = θ_c/resolution that calibration has given the
    channels, y_c = (x_c − μ_c)/u_c is rounded to multiples of s, one for each position, in which the largest |y_c| of
    the position takes b bits. Their levels are uniform and nothing is ever clipped; to find s, and to multiply sums by
    it, costs nothing here. The *best twin* has the fewest bits, of 2 to 16, at which the perplexity is at most 0.1 %
    above the spiking network's.

    The *sparse* network leaves out inputs of magnitude below a threshold, one for each site: the quantile of
    calibration activations at one share for all sites, the largest that reaches the spiking network's perplexity.

    Returns:
        The perplexities of the spiking and the dense network, ``snn`` and ``ann``, and the rivals.

    Source: a scale for each token as in integer inference with dynamic ranges (ZeroQuant, arXiv 2206.01861); thresholds
    of magnitude: TEAL (arXiv 2408.14690), whose shares differ by layer.
    """
    scores: dict[str, float] = {}
    for network in ("snn", "ann"):
        with model.simulation.using(network=network):
            scores[network] = score()
    reached: dict[int, float] = {}

    def twin(bits: int) -> float:
        if bits not in reached:
            with sending(model, integers(bits), "quantised"):
                reached[bits] = score()
            _told(progress, f"{bits}-bit twin")
        return reached[bits]

    def counted(name: str, value: float, send: Send, network: Literal["ann", "quantised"], **about: Any) -> Rival:
        with sending(model, send, network):
            counts = counts_of(model, batches, network, new_tokens=new_tokens, progress=progress)
        return Rival(name, value, about.pop("bits", None), counts, **about)

    # Chance may let the spiking network be better than the dense one; nobody is asked for that.
    target, low, best = max(scores.values()), 2, _MOST
    while low < best:
        middle = (low + best) // 2
        low, best = (low, middle) if twin(middle) <= _SAME * target else (middle + 1, best)
    names = {**{f"twin_{bits}": bits for bits in BITS}, BEST: best}
    rivals = [counted(name, twin(bits), integers(bits), "quantised", bits=bits) for name, bits in names.items()]
    magnitudes = magnitudes_of(model, calibration)
    sparse, densest, found = 0.0, _SPARSEST, scores["ann"]
    for _ in range(_HALVINGS):
        share = (sparse + densest) / 2
        with sending(model, above(magnitudes, share), "ann"):
            value = score()
        _told(progress, f"sparse network, {share:.0%} zeros")
        if value <= target:
            sparse, found = share, value
        else:
            densest = share
    return scores, [*rivals, counted("sparse", found, above(magnitudes, sparse), "ann", share=sparse)]


@contextmanager
def sending(model: Any, send: Send, network: Literal["ann", "quantised"]) -> Iterator[None]:
    """Let a function say what every site sends, in a network without spikes, while the block runs.

    Factors in attention stay as they are in ``ann``.
    """

    def replace(population: Any, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        return send(population, population.replaced(inputs[0]))

    hooks = hooked([population.register_forward_hook(replace) for population in populations(model).values()])
    with hooks, model.simulation.using(network=network):
        yield


def integers(bits: int) -> Send:
    """Return what a twin sends: b-bit integers, with a scale for each position."""

    def send(population: Population, x: Tensor) -> Tensor:
        unit = population.threshold / population.neuron.resolution(population.simulation.timesteps)
        most = 2 ** (bits - population.neuron.signed) - 1
        y = (x - population.offset) / unit
        y = y if population.neuron.signed else y.clamp_min(0)
        scale = (y.abs().amax(-1, keepdim=True) / most).clamp_min(torch.finfo(y.dtype).tiny)
        return (((y / scale).round() * scale) * unit + population.offset).to(x.dtype)

    return send


def above(magnitudes: Mapping[str, Tensor], share: float) -> Send:
    """Return what the sparse network sends: inputs at or above a quantile of their site's magnitudes, else 0."""

    def send(population: Population, x: Tensor) -> Tensor:
        sizes = magnitudes[population.path]
        limit = sizes[min(int(share * len(sizes)), len(sizes) - 1)]
        return torch.where(x.abs() >= limit, x, torch.zeros_like(x))

    return send


def magnitudes_of(model: Any, calibration: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return magnitudes of activations by site, some of those in the dense network, sorted."""
    seen: dict[str, list[Tensor]] = {}

    def look(population: Population, x: Tensor) -> Tensor:
        sizes = x.detach().abs().flatten().float()
        seen.setdefault(population.path, []).append(sizes[:: max(1, len(sizes) * len(calibration) // _KEPT)])
        return x

    with evaluating(model), sending(model, look, "ann"):
        for batch in calibration:
            model(**{name: value for name, value in batch.items() if name != "labels"})
    return {path: torch.cat(sizes).sort().values for path, sizes in seen.items()}


def _told(progress: Progress | None, what: str) -> None:
    if progress is not None:
        progress(f"measuring the {what}", 1, 1)
