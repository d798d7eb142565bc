"""The converted model: the class it was, with time steps inside its forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fas.layers.simulation import Simulation
from fas.runtime.loss import loss_from_output
from fas.runtime.parts import Answering, Folding, Writing, parts_of
from fas.settings import Exposed, Settings
from fas.surgery.replace import detach, populations, spiking_layers
from fas.surgery.written_attention import class_with, class_without
from fas.types import Record, Schedule


class SpikingModel(Answering, Exposed):
    """What a converted model can do beside what it could before.

    Every setting (``fas.settings.Settings``) is an attribute, effective at the next call: ``model.timesteps = 4``.
    ``isinstance`` with the original class holds, and its name is unchanged.
    """

    records: list[Record]

    @property
    def simulation(self) -> Simulation:
        """Settings and clock that all spiking layers share."""
        return self._simulation

    @property
    def settings(self) -> Settings:
        """How the model runs; its configuration holds the same object."""
        return self._simulation.settings

    @property
    def in_force(self) -> Simulation:
        """The settings as the present thread has them: a block that records or evaluates may have changed some."""
        return self._simulation

    @property
    def timesteps(self) -> int:
        """T, the time steps of the spiking network; L follows as ``Settings.set_timesteps`` says.

        Calibrate again after a change: thresholds are those of the T before, which a warning says.
        """
        return self._simulation.timesteps

    @timesteps.setter
    def timesteps(self, value: int) -> None:
        population = next(iter(populations(self).values()))
        self.settings.set_timesteps(value, population.neuron.resolution, trained=self.is_trained)
        if population.is_set:
            self._simulation.warn_of_timesteps()

    @property
    def schedule(self) -> Schedule:
        """``layerwise`` or ``online``; what the neurons cannot do raises FASError."""
        return self._simulation.schedule

    @schedule.setter
    def schedule(self, value: Schedule) -> None:
        for population in populations(self).values() if value == "online" else ():
            population.check_online()
        self._simulation.schedule = value

    @property
    def is_trained(self) -> bool:
        """Whether a stage has trained the quantised network."""
        return any(record.trains for record in self.records)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model as its own class does: same inputs, same kind of output, labels included."""
        simulation = self._simulation
        if not simulation.folds or simulation.steps is not None:
            return super().forward(*args, **kwargs)
        inputs = self._named(args, kwargs)
        if inputs.get("return_loss"):
            raise ValueError(
                f"{type(self).__name__} compares the samples of a batch in its loss, which the online schedule does "
                "not compute; call the model without return_loss and take the loss of its logits"
            )
        as_tuple = inputs.get("return_dict", getattr(getattr(self, "config", None), "return_dict", True)) is False
        if as_tuple:
            inputs["return_dict"] = True
        # Over T·B rows the model's own loss would average the answers of every step; it is taken of the last. Where
        # the output layer lies in a part, that part computes the loss, of one answer too.
        labels = None if self._writing() is not None else inputs.pop("labels", None)
        if labels is not None:
            prepare = getattr(self, "prepare_decoder_input_ids_from_labels", None)
            if prepare is not None and inputs.get("decoder_input_ids") is None:
                inputs["decoder_input_ids"] = prepare(labels)
        output = super().forward(**inputs)
        if labels is not None:
            output = loss_from_output(self, output, labels)
        return output.to_tuple() if as_tuple else output

    def _head(self) -> Any:
        writing = self._writing()
        return super()._head() if writing is None else writing.get_output_embeddings()

    def _writing(self) -> Any:
        """Return the language model that writes for this one, None where it does so itself."""
        return next((part for part in self.children() if isinstance(part, Writing)), None)

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
        """Return the logits in what the forward returns; of images for texts, where it compares them."""
        logits: Tensor = output["logits" if "logits" in output else "logits_per_image"]
        return logits

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint, **named: Any
    ) -> None:
        """Let blocks be computed again under the settings, and at the time steps, of the first time."""
        simulation = self._simulation

        def under_same_settings(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            settings = simulation.moment()

            def run(*again: Any) -> Any:
                with simulation.using(**settings):
                    return function(*again)

            return gradient_checkpointing_func(run, *arguments, **options)

        super()._set_gradient_checkpointing(enable=enable, gradient_checkpointing_func=under_same_settings, **named)

    def half(self) -> Any:
        """Cast to float16 as ``to`` does; transformers refuses it for what it calls quantised."""
        return self.to(torch.float16)

    def float(self) -> Any:
        """Cast to float32 as ``to`` does; transformers refuses it for what it calls quantised."""
        return self.to(torch.float32)

    def reset(self) -> None:
        """Drop membrane state that an interrupted step-by-step run has left, and what was folded into weights."""
        for population in populations(self).values():
            population.reset()
        for layer in spiking_layers(self).values():
            layer.reset()


def make_spiking(model: Any, simulation: Simulation, mixin: type = SpikingModel) -> None:
    """Give a model whose layers have been exchanged its time steps, in place."""
    for part, kind in [(model, mixin), *parts_of(model)]:
        part._simulation = simulation
        part.__class__ = class_with(kind, type(part))  # type: ignore[arg-type]


def make_dense(model: Any) -> None:
    """Undo ``make_spiking``, and put dense layers back."""
    sites = model.sites
    for part, _ in [*parts_of(model), (model, None)]:
        if isinstance(part, Folding):
            part.__class__ = class_without(type(part))
            del part._simulation
    detach(model, sites)
