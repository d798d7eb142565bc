"""Seeing spikes: the one way to count them or to keep their trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fas.layers.simulation import Simulation
from fas.runtime.spiking import SpikingModel


@dataclass
class SiteSpikes:
    """Spikes of one site.

    Attributes:
        spikes: their number, over all samples, positions and steps.
        windows: neurons times samples and positions: how many windows of T steps were counted.
        timesteps: T of the last run.
        silent: neurons that have not fired in any window, bool (C,).
        trains: spikes per step [n, *B, C] of every run, if they were asked for (uint8).
    """

    spikes: float = 0.0
    windows: int = 0
    timesteps: int = 0
    silent: Tensor | None = None
    trains: list[Tensor] = field(default_factory=list)

    @property
    def spikes_per_neuron(self) -> float:
        """Mean spikes of a neuron over the whole window."""
        return self.spikes / max(1, self.windows)

    @property
    def firing_rate(self) -> float:
        """Mean spikes of a neuron per time step."""
        return self.spikes_per_neuron / max(1, self.timesteps)


@dataclass
class Recording:
    """Spikes by site, in the order in which the sites first fired.

    Attributes:
        sites: spikes by path.
        keep_trains: whether every step is kept.
        simulation: of the model, to tell where a window begins that several calls share.
    """

    sites: dict[str, SiteSpikes] = field(default_factory=dict)
    keep_trains: bool = False
    simulation: Simulation | None = None

    def observe(self, path: str, spikes: Tensor, timesteps: int) -> None:
        """Take note of one call of one site (see ``Observer``)."""
        site = self.sites.setdefault(path, SiteSpikes())
        site.spikes += float(spikes.sum(dtype=torch.float64))
        if not self._continues:
            site.windows += spikes[0].numel()
        site.timesteps = timesteps
        quiet = spikes.flatten(0, -2).sum(0) == 0
        site.silent = quiet if site.silent is None else site.silent & quiet
        if self.keep_trains:
            site.trains.append(spikes.to(torch.uint8))

    @property
    def _continues(self) -> bool:
        """Whether the running steps go on with a window that an earlier call began (``Anytime``)."""
        steps = None if self.simulation is None else self.simulation.steps
        return steps is not None and steps.start > 1

    @property
    def spikes_per_neuron(self) -> float:
        """Mean spikes of a neuron over the whole window, over all sites."""
        return sum(s.spikes for s in self.sites.values()) / max(1, sum(s.windows for s in self.sites.values()))


@contextmanager
def record(model: Any, *, trains: bool = False) -> Iterator[Recording]:
    """Record the spikes of a converted model while the block runs; nothing is kept outside of it.

    Args:
        model: a converted model.
        trains: keep every spike of every step; runs the layerwise schedule stepped, since the collapsed
            execution produces counts only.

    Yields:
        The recording, complete when the block ends.

    Raises:
        ValueError: a model that is not converted.

    Example:
        >>> with fas.record(model) as spikes:  # doctest: +SKIP
        ...     model.generate(**inputs)
        >>> spikes.sites["transformer.h.0.mlp.c_proj"].spikes_per_neuron  # doctest: +SKIP
        0.41
    """
    if not isinstance(model, SpikingModel):
        raise ValueError(f"{type(model).__name__} is not converted; call fas.convert first")
    simulation: Simulation = model.simulation
    recording = Recording(keep_trains=trains, simulation=simulation)
    settings: dict[str, Any] = {"observers": [*simulation.observers, recording]}
    if trains:
        settings["execution"] = "stepped"
    with simulation.using(**settings):
        yield recording
