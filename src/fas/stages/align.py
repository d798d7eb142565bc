"""The end of stage 2: thresholds, potentials and biases trained by surrogate gradient, weights frozen."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from fas.calibration.teacher import Aim, Teacher, neuron_tensors
from fas.checks import check_choice
from fas.distributed import place
from fas.surgery.parameters import frozen
from fas.surgery.probe import hooked
from fas.surgery.replace import populations, spiking_layers
from fas.training.descent import bound_potentials, check_batches, descend, inputs_of
from fas.training.losses import alignment, divergence
from fas.types import Batches, Kept, Progress, Record, Stage


@dataclass(frozen=True)
class Align(Stage):
    """Minimise alignment MSE per layer + λ · KL per token against the teacher.

    The spiking network runs in the model's own schedule, so an online network with instant operators
    learns thresholds for the uneven currents it really sees. Gradients pass spikes as those of the clipped
    count (straight through the floor).

    Attributes:
        teacher: ``quantised`` (the network of stage 1, as it is when the stage begins), ``ann``, or ``auto``:
            quantised if the model has been fine-tuned, else ann.
        weight: λ of the KL term.
        learning_rate: of Adam, decaying to zero as a cosine. In units of ln θ, of v_0/θ and of the
            activation.
        epochs: passes over the batches.
        bias: train the bias corrections too.
        seed: of the order of the batches.

    Raises:
        CalibrationError: a loss that is not finite.
        ValueError: a field outside its range; several processes.

    Source: FAS (arXiv 2502.04405), fine calibration. Deviation: parameters per channel, never per token.
    """

    teacher: Aim = "auto"
    weight: float = 1.0
    learning_rate: float = 1e-3
    epochs: int = 1
    bias: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("teacher", self.teacher, get_args(Aim))
        if self.weight < 0 or self.learning_rate <= 0 or self.epochs < 1:
            raise ValueError(
                f"weight {self.weight}, learning_rate {self.learning_rate}, epochs {self.epochs}: expected a "
                "weight of at least 0, a positive learning rate and at least one epoch"
            )

    def run(self, model: Any, batches: Batches, progress: Progress | None = None, kept: Kept | None = None) -> Record:
        """Train in place and report the loss of the first and of the last tenth; nothing is kept on the way."""
        return self.follow(Teacher(model, self.teacher), model, batches, progress)

    def follow(self, teacher: Teacher, model: Any, batches: Batches, progress: Progress | None = None) -> Record:
        """Train as ``run`` does, but follow a teacher that was made before.

        Calibration for other time steps changes the biases of the quantised network too.
        """
        began = time.perf_counter()
        if place()[1] > 1:
            # The spread that errors are relative to is that of the whole batch, which no process would see.
            raise ValueError(f"the losses are trained by one process, and {place()[1]} have been started: start one")
        check_batches(batches)
        trained, neurons = neuron_tensors(model, bias=self.bias), populations(model).values()
        with frozen(model, trained), model.simulation.using(network="snn"):
            history = descend(
                torch.optim.Adam(trained, lr=self.learning_rate), batches, partial(self._loss, model, teacher),
                label="alignment", epochs=self.epochs, seed=self.seed, after=partial(bound_potentials, neurons),
                progress=progress,
            )  # fmt: skip
        tenth = max(1, len(history) // 10)
        results = {
            "seconds": time.perf_counter() - began,
            "loss_first": sum(history[:tenth]) / tenth,
            "loss_last": sum(history[-tenth:]) / tenth,
        }
        return self.record(results)

    def _loss(self, model: Any, teacher: Teacher, batch: Mapping[str, Tensor]) -> Tensor:
        inputs = inputs_of(batch)
        with torch.no_grad(), teacher.running(), _outputs(model) as targets:
            target = model(**inputs).logits
        with _outputs(model) as students:
            logits = model(**inputs).logits
        mask = inputs.get("attention_mask")
        mask = mask if mask is not None and mask.shape == logits.shape[:-1] else None
        return alignment(students, targets) + self.weight * divergence(logits, target, mask)


@contextmanager
def _outputs(model: Any) -> Iterator[list[Tensor]]:
    """Collect the output of every spiking layer, in the order of the calls; online, that after T steps."""
    collected: list[Tensor] = []

    def keep(layer: nn.Module, arguments: Any, output: Tensor) -> None:
        running = model.simulation.steps
        # The output head answers once, for what all steps together say.
        if running is not None and layer is not model.simulation.head:
            steps = output.view(len(running), -1, *output.shape[1:])
            output = steps[-1] if model.simulation.operators == "difference" else steps.mean(0)
        collected.append(output)

    with hooked([layer.register_forward_hook(keep) for layer in spiking_layers(model).values()]):
        yield collected
