"""A population of neurons at one site: parameters per channel around a neuron model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fas.errors import CalibrationError, FASError, NotCalibratedError
from fas.layers.qcfs import floor, qcfs
from fas.layers.simulation import Simulation
from fas.types import Granularity, Neuron, RateNeuron

# |ln θ| at most, so that no step of an optimiser takes θ to 0 or infinity: e^±80 are normal float32 numbers.
_EXTENT = 80.0


@dataclass
class _State:
    """What a population keeps between stretches of one window."""

    total: Tensor
    count: Tensor


class Population(nn.Module):
    r"""Neurons that turn the activation at one site into spikes, and spikes back into a mean.

    With currents x_t − μ, threshold θ and initial membrane potential v_0 the neurons end with the count
    N_T, and the layers behind receive θ N_T/T + μ. The constant μ (a bias current in front, folded into the
    bias behind) centres the code on values that both signs surround; it is 0 behind ReLU.

    Parameters, all float32 of shape (C,) or (): ``log_threshold`` = ln θ (so that training keeps θ > 0),
    ``v_init`` = v_0/θ in [0, 1), ``offset`` = μ in the unit of the activation.

    The module is called by every linear layer of its site; layers that read the same tensor get the same
    spikes, computed once.

    Args:
        path: name of the site, for messages and records.
        channels: C.
        neuron: the neuron model.
        simulation: settings and clock of the model.
        granularity: ``channel`` for parameters (C,), ``tensor`` for ().
        readers: number of linear layers that read the population.
        activation: what the neuron replaces, applied where the network is ``ann``.

    ``active`` is False while calibration has not reached the site: it then behaves as in the ANN.

    Raises:
        NotCalibratedError: on a quantised or spiking run before thresholds were set.
        FASError: in the online schedule, if the batch does not hold time steps.

    Source: neuron and mean as in Bu et al., ICLR 2022; per-channel θ and v_0 as in FAS (arXiv 2502.04405).
    """

    def __init__(
        self,
        path: str,
        channels: int,
        neuron: Neuron,
        simulation: Simulation,
        *,
        granularity: Granularity = "channel",
        readers: int = 1,
        activation: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        shape = (channels,) if granularity == "channel" else ()
        self.path = path
        self.channels = channels
        self.neuron = neuron
        self.simulation = simulation
        self.readers = readers
        self.activation: Callable[[Tensor], Tensor] | None
        # Held outside the module tree: the activation has no parameters and the network no second path to it.
        object.__setattr__(self, "activation", activation)
        self.log_threshold = nn.Parameter(torch.full(shape, math.nan, device=device))
        self.v_init = nn.Parameter(torch.full(shape, 0.5, device=device))
        self.offset = nn.Parameter(torch.zeros(shape, device=device))
        self.active = True
        self._ready = False
        self._state: _State | None = None
        self._latest: tuple[Tensor, Tensor] | None = None
        self._reads = 0

    def extra_repr(self) -> str:
        """Name what a printed model should show."""
        return f"{self.channels}, {self.neuron}"

    @property
    def threshold(self) -> Tensor:
        """θ, shape (C,) or (), in the unit of the activation."""
        return self.log_threshold.clamp(-_EXTENT, _EXTENT).exp()

    @property
    def is_set(self) -> bool:
        """Whether thresholds have been set: they start as NaN."""
        return not bool(self.log_threshold.isnan().any())

    def set(self, threshold: Tensor, offset: Tensor, v_init: Tensor) -> None:
        """Set the parameters from tensors that broadcast to their shape; θ must be positive."""
        if not bool((threshold > 0).all() and threshold.isfinite().all()):
            raise CalibrationError(
                f"site {self.path}: thresholds must be positive and finite; the smallest is "
                f"{threshold.min():g}, the largest {threshold.max():g}. Calibrate on other data."
            )
        with torch.no_grad():
            self.log_threshold.copy_(threshold.log())
            self.offset.copy_(offset)
            self.v_init.copy_(v_init)

    def replaced(self, x: Tensor) -> Tensor:
        """Return what the dense network has in place of the spikes."""
        return x if self.activation is None else self.activation(x)

    def check(self) -> None:
        """Refuse to run before thresholds are set: they start as NaN."""
        if not self._ready:
            if not self.is_set:
                raise NotCalibratedError(
                    f"site {self.path} has no thresholds yet: run fas.calibrate(model, data), "
                    "or load a checkpoint that has them"
                )
            self._ready = True

    def reset(self) -> None:
        """Forget the state of an unfinished window."""
        self._state = None
        self._latest = None
        self._reads = 0

    def forward(self, x: Tensor) -> Tensor:
        """Encode an activation and return what the linear layers behind it receive.

        Args:
            x: [*B, C]; online [n·B, …, C] with the running steps time-major in the first dimension.

        Returns:
            Shape of ``x``; in the stepped layerwise execution [T, *B, C], whose mean over T is meant.
        """
        if self.readers == 1:
            return self._encode(x)
        if self._latest is None or self._latest[0] is not x:
            self._latest, self._reads = (x, self._encode(x)), 0
        encoded = self._latest[1]
        self._reads += 1
        if self._reads == self.readers:
            self._latest = None
        return encoded

    def _encode(self, x: Tensor) -> Tensor:
        simulation = self.simulation
        if simulation.network == "ann" or not self.active:
            return self.replaced(x)
        self.check()
        # Parameters stay float32 under a half-precision model; the arithmetic follows them.
        work = x.to(torch.promote_types(x.dtype, torch.float32))
        if simulation.network == "quantised":
            return self._quantised(work).to(x.dtype)
        if simulation.schedule == "layerwise":
            collapsed = simulation.execution == "collapsed"
            return (self._collapsed(work) if collapsed else self._stepped(work)).to(x.dtype)
        return self._online(work).to(x.dtype)

    def _quantised(self, x: Tensor) -> Tensor:
        levels = self.simulation.levels
        bounds = (-levels if self.neuron.signed else 0), levels
        return qcfs(x - self.offset, self.threshold, levels, shift=self.v_init, bounds=bounds) + self.offset

    def _collapsed(self, x: Tensor) -> Tensor:
        """Even input: the count is a closed form, and the network runs on counts in one pass."""
        steps, threshold = self.simulation.timesteps, self.threshold
        counts = self._closed_form(x)
        if self.simulation.observers:
            self._show(self.neuron.spikes(counts.detach(), steps).unsqueeze(0))
        return counts * (threshold / self.neuron.resolution(steps)) + self.offset

    def _closed_form(self, x: Tensor) -> Tensor:
        """Return the count after T steps of even input, with the straight-through gradient."""
        steps = self.simulation.timesteps
        levels = floor((x - self.offset) * (self.neuron.resolution(steps) / self.threshold) + self.v_init)
        return levels.clamp(*self.neuron.bounds(steps))

    def _stepped(self, x: Tensor) -> Tensor:
        """Even input, every step: [T, *B, C], spikes times their weight, whose mean is the activation."""
        steps, threshold = self.simulation.timesteps, self.threshold
        counts = self.neuron.window((x - self.offset) / threshold, self.v_init, steps)
        emitted = torch.diff(counts, dim=0, prepend=torch.zeros_like(counts[:1])).detach()
        if self.simulation.observers:
            self._show(self._events(emitted))
        if counts.requires_grad:
            # Surrogate gradient: every step carries an equal share of that of the collapsed count.
            closed = self._closed_form(x)
            emitted = emitted + (closed - closed.detach()) / steps
        return emitted * (threshold * (steps / self.neuron.resolution(steps))) + self.offset

    def _online(self, x: Tensor) -> Tensor:
        """Uneven input: a scan over the steps in the batch, continuing an unfinished window if asked to."""
        simulation = self.simulation
        running, threshold = simulation.steps, self.threshold
        if running is None or len(x) % len(running):
            raise FASError(
                f"site {self.path} ran outside the model's own forward: in the online schedule the model "
                "lays the time steps into the batch, so call the converted model and not a part of it"
            )
        if not isinstance(self.neuron, RateNeuron):
            raise FASError(
                f"site {self.path}: {type(self.neuron).__name__} fires after its whole input only, which the "
                "online schedule does not wait for: set model.schedule = 'layerwise'"
            )
        x = x.unflatten(0, (len(running), len(x) // len(running)))
        clock, state = simulation.clock(x), self._state if simulation.carry else None
        difference = simulation.operators == "difference"
        # Σ_{i≤t} x_i, from the running mean (t · mean) or from the values of each step.
        total = x * clock if difference else x.cumsum(0)
        if state is not None and not difference:
            total = total + state.total
        levels = floor((total - self.offset * clock) / threshold + self.v_init)
        start = torch.zeros_like(levels[0]) if state is None else state.count
        counts = self.neuron.scan(levels.detach(), start, simulation.timesteps)
        if levels.requires_grad:
            # Surrogate gradient: the count behaves as the clipped one, whose floor passes straight through.
            clipped = levels.clamp(*self.neuron.bounds(simulation.timesteps))
            counts = clipped + (counts - clipped).detach()
        if simulation.carry:
            self._state = _State(total[-1], counts[-1])
        emitted = torch.diff(counts, dim=0, prepend=start.unsqueeze(0))
        if simulation.observers:
            self._show(self._events(emitted))
        signal = counts * (threshold / clock) if difference else emitted * threshold
        return (signal + self.offset).flatten(0, 1)

    def _events(self, emitted: Tensor) -> Tensor:
        """Spikes per step: a rate-coded spike is one level (a graded one counts as many), a digit any."""
        size = emitted.detach().abs()
        return size if isinstance(self.neuron, RateNeuron) else size.sign()

    def _show(self, spikes: Tensor) -> None:
        for observer in self.simulation.observers:
            observer.observe(self.path, spikes, self.simulation.timesteps)
