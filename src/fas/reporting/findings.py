"""What a report shows, measured on one model: the figures are drawn from these numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fas.energy.estimate import Estimate
from fas.types import Measurement


@dataclass(frozen=True)
class Quality:
    """One score of one network at one number of time steps.

    Attributes:
        network: ``snn``, ``quantised`` or ``ann``.
        timesteps: T; 0 for the dense network.
        value: the score.
        spikes: per neuron and window, of the spiking network.
        energy: pJ per token, accounting ``compute``, of the spiking and of the dense network.
    """

    network: str
    timesteps: int
    value: float
    spikes: float | None = None
    energy: float | None = None


@dataclass(frozen=True)
class SiteFinding:
    """One site.

    Attributes:
        path: of the site.
        role: of the site.
        spikes_per_neuron: over the window.
        silent: share of neurons that never fired.
        threshold: θ by channel [C].
        v_init: v_0/θ by channel [C].
        offset: bias current μ/θ by channel [C].
        coarse: θ of the whole layer before fine calibration, None where it was not fitted again.
        error: of the layers' output in the spiking network, squared over the dense variance; None without layers.
        code_error: the same of the site's own code in calibration, None without a record.
    """

    path: str
    role: str
    spikes_per_neuron: float
    silent: float
    threshold: Tensor
    v_init: Tensor
    offset: Tensor
    coarse: float | None
    error: float | None
    code_error: float | None


@dataclass(frozen=True)
class Raster:
    """Spikes of some neurons of a site, one row per neuron.

    Attributes:
        path: of the site.
        spikes: [positions · T, neurons], sizes.
        timesteps: T.
        neurons: of the site in all.
    """

    path: str
    spikes: Tensor
    timesteps: int
    neurons: int


@dataclass(frozen=True)
class Exit:
    """What an early exit does.

    Attributes:
        margin: lead in logits at which a token's steps end.
        mean_steps: per position.
        same: share of positions whose most likely answer is that of all steps.
    """

    margin: float
    mean_steps: float
    same: float


@dataclass(frozen=True)
class Findings:
    """Everything that a report shows.

    Attributes:
        name: of the model.
        facts: settings of the network, by name.
        score: what ``quality`` holds.
        quality: by network and T.
        sites: in the order of execution.
        rasters: of a few sites.
        agreement: share of positions where spiking and dense network find the same answer most likely.
        estimates: energy, one for each cost model.
        exits: by margin; empty where the network cannot exit early.
        results: rows of other conversions of the model, and of other commands.
        command: that made the report.
        versions: by package.
        seconds: that it took.
        data: on what.
        sample: a prompt, and what the spiking network wrote after it.
    """

    name: str
    facts: Mapping[str, str]
    score: str
    quality: Sequence[Quality]
    sites: Sequence[SiteFinding]
    rasters: Sequence[Raster]
    agreement: float
    estimates: Sequence[Estimate]
    exits: Sequence[Exit]
    command: str
    versions: Mapping[str, str]
    seconds: float
    data: str
    results: Sequence[Measurement] = field(default_factory=tuple)
    sample: tuple[str, str] | None = None

    @property
    def timesteps(self) -> int:
        """T that the model is set to."""
        return int(self.facts["time steps"])

    def at(self, network: str, timesteps: int | None = None) -> float | None:
        """Return the score of a network, at the model's T if none is named."""
        steps = 0 if network == "ann" else self.timesteps if timesteps is None else timesteps
        return next((q.value for q in self.quality if (q.network, q.timesteps) == (network, steps)), None)
