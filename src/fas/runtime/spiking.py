"""The converted model: the class it was, with time steps behind its forward."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

from torch import Tensor

from fas.kernels.dispatch import Backend, named
from fas.layers.linear import SpikingLinear
from fas.layers.simulation import Simulation, Weights
from fas.runtime import fold
from fas.runtime.loss import loss_from_output
from fas.surgery.replace import populations, spiking_layers
from fas.types import Execution, Network, Operators, Schedule

# What stands behind in the method resolution order is the model's own class.
_Parent: Any = object


class Folding(_Parent):
    """A part of a converted model that may be called from outside: lays the time steps into the batch.

    In the online schedule the rows of a batch are repeated T times on the way in. A part (an encoder that
    ``generate`` calls by itself) hands its rows on as they are; the whole model reduces them.
    """

    _simulation: Simulation
    _base_class: type

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on as many rows as there are samples and steps."""
        simulation = self._simulation
        if not simulation.folds or simulation.steps is not None:
            return super().forward(*args, **kwargs)
        inputs = self._named(args, kwargs)
        rows, steps = self._batch_rows(inputs), simulation.timesteps
        with simulation.running(range(1, steps + 1)):
            output = super().forward(**fold.fold_inputs(inputs, rows, steps))
        return self._reduced(output, rows, steps)

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        names = list(inspect.signature(type(self).forward).parameters)[1:]
        return {**dict(zip(names, args, strict=False)), **kwargs}

    def _batch_rows(self, inputs: dict[str, Any]) -> int:
        return fold.batch_rows(inputs)

    def _reduced(self, output: Any, rows: int, steps: int) -> Any:
        return output


class SpikingModel(Folding):
    """What a converted model can do beside what it could before.

    The settings are plain attributes, effective at the next call: ``network`` (ann, quantised, snn),
    ``timesteps``, ``schedule`` (layerwise, online), ``operators`` (difference, instant), ``execution``
    (collapsed, stepped). ``isinstance`` with the original class holds, and its name is unchanged.
    """

    config: Any
    get_output_embeddings: Callable[[], Any]
    _per_step: bool = False

    @property
    def simulation(self) -> Simulation:
        """Settings and clock that all spiking layers share."""
        return self._simulation

    @property
    def timesteps(self) -> int:
        """T, the time steps of the spiking network; at least 1."""
        return self._simulation.timesteps

    @timesteps.setter
    def timesteps(self, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"timesteps is {value!r}; a spiking network runs a whole number of steps, at least 1")
        self._simulation.timesteps = value

    @property
    def levels(self) -> int:
        """L, the levels of the quantised network between zero and the threshold; at least 1."""
        return self._simulation.levels

    @levels.setter
    def levels(self, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"levels is {value!r}; a quantised activation has a whole number of levels, at least 1")
        self._simulation.levels = value

    @property
    def network(self) -> Network:
        """Which network runs: ``ann``, ``quantised`` or ``snn``."""
        return self._simulation.network

    @network.setter
    def network(self, value: Network) -> None:
        self._simulation.network = _one_of("network", value, Network)

    @property
    def schedule(self) -> Schedule:
        """``layerwise``: a layer finishes its window before the next begins; ``online``: all at once."""
        return self._simulation.schedule

    @schedule.setter
    def schedule(self, value: Schedule) -> None:
        self._simulation.schedule = _one_of("schedule", value, Schedule)

    @property
    def operators(self) -> Operators:
        """How non-linear operators see time, online: ``difference`` (exact at T) or ``instant``."""
        return self._simulation.operators

    @operators.setter
    def operators(self, value: Operators) -> None:
        self._simulation.operators = _one_of("operators", value, Operators)

    @property
    def execution(self) -> Execution:
        """``collapsed`` (one pass on counts) or ``stepped`` (every step), layerwise."""
        return self._simulation.execution

    @execution.setter
    def execution(self, value: Execution) -> None:
        self._simulation.execution = _one_of("execution", value, Execution)

    @property
    def kernels(self) -> Backend:
        """Which backend computes: ``auto``, or ``torch``, ``cpu``, ``triton``, ``naive`` by name."""
        return self._simulation.kernels

    @kernels.setter
    def kernels(self, value: Backend) -> None:
        self._simulation.kernels = named(value)

    @property
    def weights(self) -> Weights:
        """``float``, or ``int8``: layerwise inference on spike counts and 8-bit weights."""
        return self._simulation.weights

    @weights.setter
    def weights(self, value: Weights) -> None:
        self._simulation.weights = _one_of("weights", value, Weights)

    def weight_error(self) -> dict[str, float]:
        """Return ‖8-bit weight − weight‖ / ‖weight‖ of every spiking linear layer, thresholds folded in.

        Raises:
            NotCalibratedError: thresholds that have not been set.
        """
        for population in populations(self).values():
            population.check()
        return {path: layer.integers().error for path, layer in spiking_layers(self).items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model as its own class does: same inputs, same kind of output, labels included."""
        simulation = self._simulation
        if not simulation.folds or simulation.steps is not None:
            return super().forward(*args, **kwargs)
        # Over T·B rows the model's own loss would average the answers of every step; it is taken of the last.
        inputs = self._named(args, kwargs)
        labels = inputs.pop("labels", None)
        if labels is not None:
            prepare = getattr(self, "prepare_decoder_input_ids_from_labels", None)
            if prepare is not None and inputs.get("decoder_input_ids") is None:
                inputs["decoder_input_ids"] = prepare(labels)
        with self._answering():
            output = super().forward(**inputs)
        return output if labels is None else loss_from_output(self, output, labels)

    def _reduced(self, output: Any, rows: int, steps: int) -> Any:
        if self._per_step:
            per_step = (lambda x: x) if self.operators == "difference" else fold.running_mean
            return fold.reduce_steps(output, rows, steps, per_step)
        return fold.reduce_steps(output, rows, steps, self._reduction())

    def _reduction(self) -> Callable[[Tensor], Tensor]:
        return fold.last if self.operators == "difference" else fold.mean

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Let the output layer compute the answer alone, not what it would be after every step.

        It is linear, so the mean of its outputs is its output for the mean. What stands behind it must be too;
        Gemma 2 caps its logits, whose mean is then taken behind the cap.
        """
        head = self.get_output_embeddings() if hasattr(self, "get_output_embeddings") else None
        capped = getattr(self.config, "final_logit_softcapping", None) is not None
        if head is None or self._per_step or (capped and self.operators == "instant"):
            yield
            return
        simulation = self._simulation
        with simulation.using(head=head, reduction=self._reduction()):
            if isinstance(head, SpikingLinear):
                yield
                return
            handle = head.register_forward_pre_hook(lambda _, arguments: simulation.reduced(arguments[0]))
            try:
                yield
            finally:
                handle.remove()

    def logits_per_step(self, **inputs: Any) -> Tensor:
        """Return the answer at every time step of the online schedule.

        Args:
            inputs: as for the model's forward, by name.

        Returns:
            Logits [T, *B, classes]: what the network says after steps 1…t.

        Raises:
            ValueError: in the layerwise schedule, which has one answer only.
        """
        if not self._simulation.folds:
            raise ValueError(
                f"logits_per_step needs the spiking network in the online schedule; the model is set to network "
                f"{self.network!r}, schedule {self.schedule!r}: set model.schedule = 'online'"
            )
        self._per_step = True
        try:
            return self._answer(self(**inputs))
        finally:
            self._per_step = False

    def _answer(self, output: Any) -> Tensor:
        """Return the logits in what the forward returns."""
        logits: Tensor = output.logits
        return logits

    def reset(self) -> None:
        """Drop membrane state that an interrupted step-by-step run has left, and what was folded into weights."""
        for population in populations(self).values():
            population.reset()
        for layer in spiking_layers(self).values():
            layer.reset()

    def _reorder_cache(self, past_key_values: Any, beam_idx: Tensor) -> Any:
        """Reorder a cache for beam search: online it holds T rows for every beam."""
        steps = self.timesteps if self._simulation.folds else 1
        rows = len(beam_idx)
        index = fold.fold(beam_idx, rows, steps)
        if steps > 1:
            shift = index.new_tensor(range(steps)).repeat_interleave(rows) * rows
            index = index + shift
        parent = getattr(super(), "_reorder_cache", None)
        if parent is not None:
            return parent(past_key_values, index)
        past_key_values.reorder_cache(index)
        return past_key_values


def _one_of(name: str, value: Any, choices: Any) -> Any:
    if value not in get_args(choices):
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(get_args(choices))}")
    return value


@functools.cache
def spiking_class(base: Any, mixin: Any = SpikingModel) -> Any:
    """Return ``base`` with the abilities of ``mixin``, under the same name.

    The name matters: transformers writes it into config.json and finds the loss by it.
    """

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return mixin.forward(self, *args, **kwargs)

    members = {
        "forward": forward,
        "_base_class": base,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    return type(base.__name__, (mixin, base), members)


def make_spiking(model: Any, simulation: Simulation, mixin: type = SpikingModel) -> None:
    """Give a model whose layers have been exchanged its time steps, in place."""
    model._simulation = simulation
    encoder = _encoder(model)
    model.__class__ = spiking_class(type(model), mixin)  # type: ignore[arg-type]
    if encoder is not None:
        encoder._simulation = simulation
        encoder.__class__ = spiking_class(type(encoder), Folding)  # type: ignore[arg-type]


def make_dense(model: Any) -> None:
    """Undo ``make_spiking``."""
    encoder = _encoder(model)
    for part in (model, encoder):
        if isinstance(part, Folding):
            part.__class__ = part._base_class
            del part._simulation


def _encoder(model: Any) -> Any:
    """Return the part that ``generate`` runs by itself in an encoder-decoder model."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return None
    return model.get_encoder()
