"""A population of neurons at one site: parameters per channel around a neuron model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from fas.errors import CalibrationError, FASError, NotCalibratedError
from fas.kernels import torch_
from fas.kernels.interface.code import Code, Known, State, version_of
from fas.kernels.interface.dispatch import choose
from fas.kernels.interface.table import LARGEST
from fas.layers.once import Once
from fas.layers.qcfs import floor, qcfs
from fas.layers.simulation import Simulation
from fas.types import Granularity, Neuron, RateNeuron

Form = Literal["values", "mean", "counts", "spikes"]
# Spikes that exist as numbers at a time, where a code does not fit into bits.
_AT_A_TIME = 1 << 20

# |ln θ| at most, so that no step of an optimiser takes θ to 0 or infinity: e^±80 are normal float32 numbers.
_EXTENT = 80.0


class Population(nn.Module):
    r"""Neurons that turn the activation at one site into spikes, and spikes back into a mean.

    With currents x_t − μ, threshold θ and initial membrane potential v_0 the neurons end with the count
    N_T, and the layers downstream receive θ N_T/T + μ. The constant μ (a bias current in front, folded into the
    bias after it) centres the code on values that both signs surround; it is 0 after ReLU.

    Parameters, all float32 of shape (C,) or (): ``log_threshold`` = ln θ (so that training keeps θ > 0),
    ``v_init`` = v_0/θ in [0, 1), ``offset`` = μ in the unit of the activation.

    Every linear layer of its site calls the module; those that read the same tensor get the same spikes.

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
        self.once = Once(readers)
        self.activation: Callable[[Tensor], Tensor] | None
        # Held outside the module tree: the activation has no parameters and the network no second path to it.
        object.__setattr__(self, "activation", activation)
        self.log_threshold = nn.Parameter(torch.full(shape, math.nan, device=device))
        self.v_init = nn.Parameter(torch.full(shape, 0.5, device=device))
        self.offset = nn.Parameter(torch.zeros(shape, device=device))
        self.active = True
        self._ready = False
        # Σ x and N between stretches of one window.
        self._state: State | None = None
        self._known: Known | None = None

    def extra_repr(self) -> str:
        """Name what a printed model should show."""
        return f"{self.channels}, {self.neuron}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move with the model, but stay float32 under ``half()`` or ``bfloat16()``: counts hang on thresholds."""

        def moved(tensor: Tensor) -> Tensor:
            after = fn(tensor)
            narrower = after.is_floating_point() and after.dtype.itemsize < 4 <= tensor.dtype.itemsize
            return tensor.to(after.device) if narrower else after

        return super()._apply(moved, recurse)

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
        self.simulation.calibrated = self.simulation.timesteps

    def replaced(self, x: Tensor) -> Tensor:
        """Return what the dense network has in place of the spikes."""
        return x if self.activation is None else self.activation(x)

    def check(self) -> None:
        """Refuse to run before thresholds are set: they start as NaN."""
        if self._ready:
            return
        message = f"site {self.path} has no thresholds yet: run fas.calibrate(model, data), or load what has them"
        if torch.compiler.is_compiling():
            # A graph cannot branch on values; it can refuse them when it runs.
            torch._assert_async(self.log_threshold.isnan().logical_not().all(), message)
            return
        if not self.is_set:
            raise NotCalibratedError(message)
        self._ready = True

    def code(self, dtype: torch.dtype) -> Code:
        """Return the constants of the neurons at the present T, (C,) in a dtype, for inference.

        The same object comes back until T or a parameter changes. On the CPU parameters are compared by their
        values; elsewhere that would have to wait for the device, and their versions are, which a change through
        ``parameter.data`` escapes: call ``reset`` after one.
        """
        steps, known = self.simulation.timesteps, self._known
        # Attribute access of a module is slow, and this runs at every site of every token.
        parameters = tuple(cast("dict[str, Tensor]", self._parameters).values())
        if known is not None and known.code.timesteps == steps and known.code.scale.dtype == dtype:
            if known.made_of(parameters):
                return known.code
        with torch.no_grad():
            code = Code.of(self.neuron, steps, self.threshold, self.v_init, self.offset)
            code = code.map(lambda p: p.to(dtype).expand(self.channels).contiguous())
            values = tuple(p.detach().clone() for p in parameters)
        self._known = Known(code, values, tuple(map(version_of, parameters)))
        return code

    def reset(self) -> None:
        """Forget the state of an unfinished window."""
        self._state = None
        self._known = None
        self.once.reset()

    def forward(self, x: Tensor, form: Form = "values") -> Any:
        """Encode an activation and return what the linear layers after it receive.

        Args:
            x: [*B, C]; online [n·B, …, C] with the running steps time-major in the first dimension.
            form: ``values``; ``mean``, of them over time; ``counts`` after T steps (int16), layerwise, with the gain of
                each token [*B, 1], None where all are 1, and the code; or the ``spikes`` of every step (int8), online,
                of a window from its beginning.

        Returns:
            Shape of ``x``, but [n, *B, C] of the spikes; as ``values`` of the stepped layerwise execution
            [T, *B, C], whose mean over T is meant.
        """
        if torch.compiler.is_compiling():
            return self._encode(x, form)
        return self.once(x, form, partial(self._encode, form=form))

    def differentiates(self, x: Tensor) -> bool:
        """Whether a run on ``x`` is one that gradients flow through, or that is being traced: torch runs it."""
        if torch.compiler.is_compiling():
            return True
        if not torch.is_grad_enabled():
            return False
        return x.requires_grad or any(p.requires_grad for p in (self.log_threshold, self.v_init, self.offset))

    def _encode(self, x: Tensor, form: Form) -> Any:
        simulation, known = self.simulation, self._known
        # After a call under the same settings there is less to ask.
        if known is not None and known.settings == simulation.unchanged:
            if self.active and x.dtype == known.code.scale.dtype and self.code(x.dtype) is known.code:
                return self._by_kernel(x, form, known.code)
        if simulation.network == "ann" or not self.active:
            return self.replaced(x)
        self.check()
        # Parameters stay float32 under a half-precision model; the arithmetic follows them.
        work = x.to(torch.promote_types(x.dtype, self.log_threshold.dtype))
        if simulation.network == "quantised":
            return self.quantised(work).to(x.dtype)
        return self._spiking(work, form, x.dtype, by_torch=self.differentiates(work))

    def _spiking(self, work: Tensor, form: Form, dtype: torch.dtype, *, by_torch: bool) -> Any:
        simulation = self.simulation
        if simulation.schedule == "online":
            signal = self._online(work, form, by_torch=by_torch)
            return signal if form == "spikes" else signal.to(dtype)
        if simulation.execution == "collapsed":
            encoded: Any = self._collapsed(work) if by_torch else self._collapsed_fast(work, form)
        elif by_torch or form == "values":
            encoded = self._stepped(work, by_torch=by_torch)
            encoded = encoded if form == "values" else encoded.mean(0)
        else:
            encoded = self._stepped_packed(work, form)
        return encoded if form == "counts" else encoded.to(dtype)

    def quantised(self, x: Tensor) -> Tensor:
        """Return what the quantised network has in place of the spikes."""
        levels, neuron = self.simulation.levels, self.neuron
        # Uneven levels are those of the T that L belongs to, whatever T the spiking network has now.
        steps = 1 if neuron.even_levels else next(t for t in itertools.count(1) if neuron.resolution(t) >= levels)
        if not neuron.even_levels and neuron.resolution(steps) == levels:
            return self._closed_form(x, steps) * (self.threshold / levels) + self.offset
        bounds = (-levels if neuron.signed else 0), levels
        return qcfs(x - self.offset, self.threshold, levels, shift=self.v_init, bounds=bounds) + self.offset

    def _collapsed(self, x: Tensor) -> Tensor:
        """Even input: the count is a closed form, and the network runs on counts in one pass."""
        steps, threshold = self.simulation.timesteps, self.threshold
        counts = self._closed_form(x, steps)
        if self.simulation.observers:
            self.simulation.show(self.path, self.neuron.spikes(counts.detach(), steps)[None])
        return counts * (threshold / self.neuron.resolution(steps)) + self.offset

    def _closed_form(self, x: Tensor, steps: int) -> Tensor:
        """Return the count after T steps of even input, with the straight-through gradient."""
        neuron = self.neuron
        levels = floor((x - self.offset) * (neuron.resolution(steps) / self.threshold) + self.v_init)
        if neuron.even_levels:
            return neuron.settle(levels, steps)
        # Rounding to the levels that there are passes straight through as the floor does.
        clipped = levels.clamp(*neuron.bounds(steps))
        return clipped + (neuron.settle(levels, steps) - clipped).detach()

    def _collapsed_fast(self, x: Tensor, form: Form) -> Any:
        """The same without gradients, in one pass over the activation."""
        code, simulation = self.code(x.dtype), self.simulation
        known = self.neuron.even_levels or code.table is not None
        sent = simulation.tally(code, self.path) if known else None
        seen, whole = sent is None and bool(simulation.observers), known and code.upper <= LARGEST
        if not seen and (whole if form == "counts" else known):
            if whole and code.recursion is not None and self._known is not None:
                self._known.settings = simulation.unchanged or None
            return self._by_kernel(x, form, code, sent)
        if whole:
            counts, gain, _ = self._by_kernel(x, "counts", code)
        else:
            counts, gain = self._closed_form(x, code.timesteps), None
        if seen:
            simulation.show(self.path, self.neuron.spikes(counts.to(x.dtype), code.timesteps).unsqueeze(0))
        return (counts.to(torch.int16), gain, code) if form == "counts" else torch_.decode(counts, code, x.dtype, gain)

    def _by_kernel(self, x: Tensor, form: Form, code: Code, sent: Tensor | None = None) -> Any:
        """Have a kernel do all of it, and hand on the spikes that it has added up."""
        op = "counts" if form == "counts" else "encode"
        kernel = choose(op, self.simulation.kernels, x.device, x.dtype)
        gain = x.new_empty(*x.shape[:-1], 1) if code.adapts and op == "counts" else None
        encoded = (kernel.counts(x, code, sent, gain), gain, code) if op == "counts" else kernel.encode(x, code, sent)
        self.simulation.tell(self.path, sent, x.numel())
        return encoded

    def _stepped(self, x: Tensor, *, by_torch: bool) -> Tensor:
        """Even input, every step: [T, *B, C], spikes times their weight, whose mean is the activation."""
        parameters = self.threshold, self.v_init, self.offset
        code = Code.of(self.neuron, self.simulation.timesteps, *parameters) if by_torch else self.code(x.dtype)
        sent = None if by_torch else self.simulation.tally(code, self.path)
        seen = sent is None and bool(self.simulation.observers)
        if not (by_torch or seen or code.recursion is None):
            trains: Tensor = choose("emit", self.simulation.kernels, x.device, x.dtype).emit(x, code, sent)
            self.simulation.tell(self.path, sent, x.numel())
            return trains
        x, gain = (x, None) if by_torch else torch_.lifted(x, code)
        emitted = self._window(x, code).diff(dim=0, prepend=torch.zeros_like(x).unsqueeze(0))
        if self.simulation.observers:
            self.simulation.show(self.path, self._events(emitted))
        if by_torch:
            # Surrogate gradient: every step carries an equal share of that of the collapsed count.
            closed = self._closed_form(x, code.timesteps)
            emitted = emitted + (closed - closed.detach()) / code.timesteps
        return torch_.weighed(emitted, code.step_unit, code, gain)

    def _window(self, x: Tensor, code: Code) -> Tensor:
        """Return the counts of every step [T, *B, C], without gradient."""
        with torch.no_grad():
            if code.recursion is None:
                return self.neuron.window((x - code.offset) / code.threshold, code.v_init, code.timesteps)
            return torch.stack([torch_.window(x, code, t) for t in range(1, code.timesteps + 1)])

    def _stepped_packed(self, x: Tensor, form: Form) -> Any:
        """Every step with one bit per spike, put together for a product that reads the weights once."""
        # The layers are linear, so the sum of their currents over time is their response to the spike counts: what
        # they get is the number of spikes in the train, not T trains. The cost of T steps is that of making the spikes;
        # a code whose spikes are not bits is stepped in stretches of rows instead.
        code, kernels = self.code(x.dtype), self.simulation.kernels
        sent = self.simulation.tally(code, self.path) if code.in_bits else None
        observed = sent is None and bool(self.simulation.observers)
        plain, gain = observed or not code.in_bits, x.new_empty(*x.shape[:-1], 1) if code.adapts else None
        x = torch_.lifted(x, code, gain)[0] if plain else x
        if observed:
            # They get the whole train as numbers.
            window = self._window(x, code)
            self.simulation.show(self.path, self._events(window.diff(dim=0, prepend=torch.zeros_like(window[:1]))))
            counts = window[-1]
        elif plain:
            many = max(1, _AT_A_TIME // max(1, code.timesteps * self.channels))
            rows = x.reshape(-1, self.channels).split(many)
            counts = torch.cat([self._window(some, code)[-1] for some in rows]).view(x.shape)
        decode = torch_.decode
        if not plain:
            bits = choose("pack", kernels, x.device, x.dtype).pack(x, code, gain)
            counts = choose("unpack", kernels, x.device, bits.dtype).unpack(bits, code, sent)
            self.simulation.tell(self.path, sent, x.numel())
            decode = choose("decode", kernels, x.device, x.dtype).decode
        return (counts.to(torch.int16), gain, code) if form == "counts" else decode(counts, code, x.dtype, gain)

    def check_online(self) -> RateNeuron:
        """Return the neuron model; refuse one that the online schedule cannot run (FASError)."""
        if not isinstance(self.neuron, RateNeuron):
            raise FASError(
                f"site {self.path}: {type(self.neuron).__name__} fires after its whole input only, which the online "
                "schedule does not wait for: set model.schedule = 'layerwise', or convert with neuron='signed_if'"
            )
        return self.neuron

    def _online(self, x: Tensor, form: Form, *, by_torch: bool) -> Tensor:
        """Uneven input: a scan over the steps in the batch, continuing an unfinished window if asked to."""
        simulation, running = self.simulation, self.simulation.steps
        if running is None or len(x) % len(running):
            raise FASError(
                f"site {self.path} ran outside the model's own forward, which in the online schedule lays time steps "
                "into the batch: call the converted model and not a part of it. One that hands on images one by one "
                "(Qwen2-VL in coverage 'full') runs layerwise only"
            )
        neuron = self.check_online()
        x = x.unflatten(0, (len(running), len(x) // len(running)))
        state = self._state if simulation.carry else None
        difference = simulation.operators == "difference"
        code = None if by_torch and form != "spikes" else self.code(x.dtype)
        sent = None if code is None else simulation.tally(code, self.path)
        seen = sent is None and bool(simulation.observers)
        if code is not None and (form == "spikes" or not (seen or code.recursion is None)):
            op = "spikes" if form == "spikes" else "scan"
            backend = choose(op, simulation.kernels, x.device, x.dtype)
            how = {"first": running.start, "difference": difference, "state": state, "sent": sent}
            signal, *after = getattr(backend, op)(x, code, **how)
            simulation.tell(self.path, sent, x[0].numel())
            if seen:
                simulation.show(self.path, signal.abs())
            if simulation.carry:
                self._state = after[0], after[1]
            return signal if form == "spikes" else signal.flatten(0, 1)
        clock, threshold = simulation.clock(x), self.threshold
        if by_torch and not (difference or simulation.carry) and getattr(neuron, "gamma", False):
            emitted = neuron.fire(x - self.offset, self.v_init, threshold)  # type: ignore[attr-defined]
            return self._online_signal(emitted, emitted * threshold)
        # Σ_{i≤t} x_i, from the running mean (t · mean) or from the values of each step.
        total = x * clock if difference else x.cumsum(0)
        if state is not None and not difference:
            total = total + state[0]
        levels = floor((total - self.offset * clock) / threshold + self.v_init)
        start = torch.zeros_like(levels[0]) if state is None else state[1]
        counts = neuron.scan(levels.detach(), start, simulation.timesteps)
        if levels.requires_grad:
            # Surrogate gradient: the count behaves as the clipped one, whose floor passes straight through.
            clipped = levels.clamp(*neuron.bounds(simulation.timesteps))
            counts = clipped + (counts - clipped).detach()
        if simulation.carry:
            self._state = total[-1], counts[-1]
        emitted = torch.diff(counts, dim=0, prepend=start.unsqueeze(0))
        return self._online_signal(emitted, counts * (threshold / clock) if difference else emitted * threshold)

    def _online_signal(self, emitted: Tensor, signal: Tensor) -> Tensor:
        if self.simulation.observers:
            self.simulation.show(self.path, self._events(emitted))
        return (signal + self.offset).flatten(0, 1)

    def _events(self, emitted: Tensor) -> Tensor:
        """Spikes per step: a rate-coded spike is one level (a graded one counts as many), a digit any."""
        size = emitted.detach().abs()
        return size.sign() if self.neuron.emission == "digits" else size
