"""Figures of several sites as one, and the line that is logged for every block while it is calibrated."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from fas.surgery.sites import block_of
from fas.surgery.trace import starred
from fas.types import Site

logger = logging.getLogger(__name__)

Figures = Mapping[str, float]


def mean_of(sites: Iterable[Site], figures: Mapping[str, Figures]) -> dict[str, float]:
    """Return the relative error, mean over the sites, and the spikes per neuron and window, mean over all neurons.

    Returns:
        ``relative_error`` and ``spikes_per_neuron``; nothing where no site has them.
    """
    known = [(site.channels, found) for site in sites if "relative_error" in (found := figures.get(site.path, {}))]
    if not known:
        return {}
    neurons = sum(channels for channels, _ in known)
    return {
        "relative_error": sum(found["relative_error"] for _, found in known) / len(known),
        "spikes_per_neuron": sum(channels * found["spikes_per_neuron"] for channels, found in known) / neurons,
    }


def by_kind(sites: Iterable[Site]) -> dict[str, list[Site]]:
    """Return sites by kind of layer: the last two parts of their path, numbers as ``*`` (``mlp.down_proj``)."""
    kinds: dict[str, list[Site]] = {}
    for site in sites:
        kinds.setdefault(".".join(starred(site.path).split(".")[-2:]), []).append(site)
    return kinds


def in_words(found: Figures) -> str:
    """Return what ``mean_of`` found as text."""
    if not found:
        return "thresholds set"
    return f"relative error {found['relative_error']:.2g}, {found['spikes_per_neuron']:.2f} spikes per neuron"


def tell(sites: Sequence[Site], figures: Mapping[str, Figures], done: int, total: int) -> None:
    """Log one line about a block, or about a site outside of all blocks, whose sites have been visited."""
    name = block_of(sites[0].path) or sites[0].path
    logger.info("%s: %s (%d of %d sites)", name, in_words(mean_of(sites, figures)), done, total)
