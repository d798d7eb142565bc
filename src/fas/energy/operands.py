"""Spikes that are factors in attention: what a spike of a query, key, value or weight sets off."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from torch import Tensor

from fas.energy.emission import Emission
from fas.energy.operations import Operations
from fas.layers.simulation import Positions, Simulation
from fas.surgery.replace import attention_of
from fas.types import OPERANDS, Role, Site

_DRIVER: dict[str, Role] = {"scores": "query", "values": "attention_weight"}


@dataclass(frozen=True)
class Scores:
    """What a softmax of attention received.

    Attributes:
        place: the module that computed it.
        size: entries, masked ones included.
        visible: entries by query [..., queries] that the mask lets through, integers.
    """

    place: str
    size: int
    visible: Tensor

    @property
    def pairs(self) -> int:
        """Number of pairs of query and key that the mask lets through."""
        return int(self.visible.sum())


class Operands:
    """Counts the attention factors of a model; the one place that knows their rules.

    A spike of a query adds one entry of every key that the query may see to its scores; a spike of a weight
    adds a row of values to the output. Spikes of keys and values go into what is decoded and kept for later
    queries, one addition each, when their position is new; those already in the cache are encoded again in the
    simulation and not counted again.

    What a query's offset μ adds to its scores is not a spike: a product μ · k of every new key and head, which a sum
    over stored keys cannot fold into weights. It is counted as the multiply-adds of the channels whose μ is not 0.

    Online, keys change while queries fire: the products are counted as the multiply-adds that are executed.

    Args:
        sites: those of the model.
        simulation: its settings.
        positions: gives those of the pass that runs.
        at: gives the entry of a place.
        offset: gives the channels of a site whose offset is not 0.
        gates: dotted names of the factors of modules whose softmax is gated.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        simulation: Simulation,
        positions: Callable[[], Positions],
        at: Callable[[str], Operations],
        offset: Callable[[str], int],
        gates: Container[str] = (),
    ) -> None:
        self._sites = {site.path: site for site in sites if site.role in OPERANDS}
        self._roles = {(attention_of(site), site.role): site for site in self._sites.values()}
        self._simulation, self._positions, self._at = simulation, positions, at
        self._offset, self._gates = offset, gates
        self._queries: dict[str, Emission] = {}
        self._weights: dict[str, Emission] = {}
        self._scores: dict[str, Scores] = {}

    def __contains__(self, path: str) -> bool:
        """Whether a site is a factor in attention."""
        return path in self._sites

    def driven(self, place: str, product: str) -> bool:
        """Say whether spikes drive a product, ``scores`` or ``values``, of the module at a place."""
        simulation = self._simulation
        spiking = simulation.network == "snn" and simulation.schedule == "layerwise"
        return spiking and (place, _DRIVER[product]) in self._roles

    def gated(self, place: str) -> bool:
        """Whether gated populations evaluate the softmax of the module at a place."""
        return self._simulation.network == "snn" and f"{place}.operands" in self._gates

    def emitted(self, path: str, emission: Emission) -> None:
        """Count one call of a site, at once or when its product has been computed."""
        site = self._sites[path]
        place = attention_of(site)
        if site.role in ("key", "value"):
            kept = emission.at(slice(self._positions().first(emission.spikes.shape[-2]), None))
            kept.sent(self._at(path), site.channels)
            kept.kept(self._at(path))
            query = self._roles.get((place, "query"))
            if site.role == "key" and query is not None and self._simulation.schedule == "layerwise":
                self._at(query.path).multiply_adds += kept.neurons // site.channels * self._offset(query.path)
        elif self._simulation.schedule == "online":
            emission.sent(self._at(path), site.channels)
        elif site.role == "query":
            emission.sent(self._at(path), site.channels)
            self._queries[place] = emission
        else:
            self._weights[place] = emission

    def scored(self, scores: Scores, words: int) -> None:
        """Count the additions of a module's queries, once it is known which keys each of them sees."""
        self._scores[scores.place] = scores
        emission = self._queries.pop(scores.place, None)
        if emission is None:
            return
        site = self._roles[scores.place, "query"]
        *batch, heads, queries = scores.visible.shape
        width = site.channels // heads
        # One number per neuron: [B, heads, queries] to [B, queries, heads times width].
        visible = scores.visible.transpose(-1, -2).unsqueeze(-1).expand(*batch, queries, heads, width).flatten(-2)
        found = self._at(site.path)
        emission.caused(found, visible, addresses=site.channels, words=words, dense=scores.pairs * width)
        found.outputs += scores.pairs

    def valued(self, place: str, width: int, words: int) -> None:
        """Count a module's weights, once it is known what they select."""
        emission = self._weights.pop(place)
        site, scores = self._roles[place, "attention_weight"], self._scores[place]
        found, addresses = self._at(site.path), emission.spikes.shape[-2] * site.channels
        emission.sent(found, addresses)
        emission.caused(found, width, addresses=addresses, words=words, dense=scores.pairs * width)
        found.outputs += scores.visible.numel() * width
