"""Seeing spikes: the one way to count them or to keep their trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fas.layers.gated import Gated
from fas.layers.simulation import Simulation
from fas.runtime.spiking import SpikingModel


@dataclass
class SiteSpikes:
    """Spikes of one site.

    Attributes:
        sent: their number by channel, over all samples, positions and steps, int64 (C,).
        windows: neurons times samples and positions: how many windows of T steps were counted.
        timesteps: T of the last run.
        trains: spikes per step [n, *B, C] of every run, if they were asked for (uint8).
    """

    sent: Tensor | None = None
    windows: int = 0
    timesteps: int = 0
    trains: list[Tensor] = field(default_factory=list)

    @property
    def spikes(self) -> int:
        """Number of spikes of all channels."""
        return 0 if self.sent is None else int(self.sent.sum())

    @property
    def silent(self) -> Tensor | None:
        """Channels that have not fired in any window, bool (C,)."""
        return None if self.sent is None else self.sent == 0

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
        sites: spikes by path; of gated populations, a neuron per evaluation, under ``gated.<function>``.
        simulation: of the model, to tell where a window begins that several calls share.
    """

    sites: dict[str, SiteSpikes] = field(default_factory=dict)
    simulation: Simulation | None = None

    def tally(self, path: str, sent: Tensor, windows: int, timesteps: int) -> None:
        """Record one call of one site (see ``Tally``)."""
        site = self.sites.setdefault(path, SiteSpikes())
        site.sent = sent if site.sent is None else site.sent + sent
        if not self._continues:
            site.windows += windows
        site.timesteps = timesteps

    def observe(self, path: str, spikes: Tensor, timesteps: int) -> None:
        """Count keys or values that are new: those of a cache were sent when they were made (see ``Observer``)."""
        assert self.simulation is not None and self.simulation.positions is not None
        new = spikes[..., self.simulation.positions.first(spikes.shape[-2]) :, :]
        self.tally(path, new.flatten(0, -2).sum(0, dtype=torch.int64), new[0].numel(), timesteps)

    def gated(self, function: Gated, x: Tensor, _: Tensor) -> None:
        """Record the spikes of a gated population (``Simulation.gated``), under the name of its function."""
        sent = function.spikes(x).sum(dtype=torch.float64).to(torch.int64).view(1)
        self.tally(f"gated.{function.name}", sent, x.numel(), function.digits)

    def hide(self, path: str, windows: int) -> None:
        """Take back windows at which no neuron stands (``Simulation.hide``)."""
        if not self._continues:
            self.sites[path].windows -= windows

    @property
    def _continues(self) -> bool:
        """Whether the running steps continue a window that an earlier call began (``Anytime``)."""
        steps = None if self.simulation is None else self.simulation.steps
        return steps is not None and steps.start > 1

    @property
    def spikes_per_neuron(self) -> float:
        """Mean spikes of a neuron over the whole window, over all sites."""
        return sum(s.spikes for s in self.sites.values()) / max(1, sum(s.windows for s in self.sites.values()))


@dataclass
class _Trains:
    """Keeps every spike beside what a recording counts."""

    recording: Recording

    def observe(self, path: str, spikes: Tensor, timesteps: int) -> None:
        self.recording.sites.setdefault(path, SiteSpikes()).trains.append(spikes.to(torch.uint8))


@contextmanager
def record(model: Any, *, trains: bool = False) -> Iterator[Recording]:
    """Record the spikes of a converted model while the block runs; nothing is kept outside of it.

    Kernels count spikes where they make them, without another pass over memory; only trains have to be produced.

    Args:
        model: a converted model.
        trains: keep every spike of every step; layerwise then runs stepped, as collapsed it has counts only.

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
    recording = Recording(simulation=simulation)
    settings: dict[str, Any] = {"observers": [*simulation.observers, recording]}
    if trains:
        settings["observers"].append(_Trains(recording))
        settings["execution"] = "stepped"
    with simulation.using(**settings):
        yield recording
