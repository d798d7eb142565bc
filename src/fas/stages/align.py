"""The end of stage 2: thresholds, potentials and biases trained by surrogate gradient, weights frozen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from fas.calibration.teacher import Aim, Teacher, neuron_tensors
from fas.checks import check_choice
from fas.distributed import place
from fas.errors import CalibrationError
from fas.surgery.parameters import frozen
from fas.surgery.probe import hooked
from fas.surgery.replace import populations, spiking_layers
from fas.training.descent import bound_potentials, check_batches, descend, inputs_of, mask_of
from fas.training.losses import alignment, divergence
from fas.types import Batches, Kept, Progress, Record, Stage


@dataclass(frozen=True)
class Align(Stage):
    """Minimise alignment MSE per layer + λ · KL per token against the teacher.

    The spiking network runs in the model's own schedule, so an online network with instant operators
    learns thresholds for the uneven currents it really sees. Gradients pass spikes as those of the clipped
    count (straight through the floor). Every eighth batch is held out (of a single one nothing is): of ten moments of
    the training, and the one before it, that of the least KL on those batches is kept.

    Attributes:
        teacher: ``quantised`` (the network of stage 1, as it is when the stage begins), ``ann``, or ``auto``:
            quantised if the model has been fine-tuned, else ann.
        weight: λ of the KL term.
        learning_rate: of Adam, decaying to zero as a cosine, in units of ln θ, of v_0/θ and of the activation.
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
        """Train in place; report the loss of the first and of the last tenth, and the KL on held-out batches."""
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
        held = batches[::8] if len(batches) > 1 else []
        batches = [batch for i, batch in enumerate(batches) if i % 8] if held else batches
        trained, neurons = neuron_tensors(model, bias=self.bias), populations(model).values()
        with frozen(model, trained), model.simulation.using(network="snn"):
            every = max(1, self.epochs * len(batches) // 10)
            best = _Best(trained, partial(self._divergence, model, teacher, held), every)

            def after() -> None:
                bound_potentials(neurons)
                best.look()

            history = descend(
                torch.optim.Adam(trained, lr=self.learning_rate), batches, partial(self._loss, model, teacher),
                label="alignment", epochs=self.epochs, seed=self.seed, after=after, progress=progress,
            )  # fmt: skip
            if held:
                best.restore()
        tenth = max(1, len(history) // 10)
        results = {
            "seconds": time.perf_counter() - began,
            "loss_first": sum(history[:tenth]) / tenth,
            "loss_last": sum(history[-tenth:]) / tenth,
        }
        if held:
            results |= {"divergence_before": best.first, "divergence_after": best.least}
        return self.record(results)

    def _loss(self, model: Any, teacher: Teacher, batch: Mapping[str, Tensor]) -> Tensor:
        inputs, watched = inputs_of(batch), list(self.watched(model))
        with torch.no_grad(), teacher.running(), _outputs(model, watched) as targets:
            target = model(**inputs).logits
        with _outputs(model, watched) as students:
            logits = model(**inputs).logits
        return self.objective(model, students, targets, logits, target, mask_of(inputs, logits))

    def watched(self, model: Any) -> Iterable[nn.Module]:
        """Return the modules whose outputs are aligned."""
        return spiking_layers(model).values()

    def objective(
        self, model: Any, students: list[Tensor], targets: list[Tensor], logits: Tensor, target: Tensor, mask: Any
    ) -> Tensor:
        """Return the loss of one batch.

        Args:
            model: that is trained.
            students: outputs of the watched modules, means over time [*B, C].
            targets: those of the teacher.
            logits: [*B, classes].
            target: those of the teacher.
            mask: positions that count, [*B]; all if None.
        """
        return alignment(students, targets) + self.weight * divergence(logits, target, mask)

    @torch.no_grad()
    def _divergence(self, model: Any, teacher: Teacher, batches: Batches) -> float:
        """Return the mean KL to the teacher, in nats per token."""
        total = 0.0
        for batch in batches:
            inputs = inputs_of(batch)
            with teacher.running():
                target = model(**inputs).logits
            logits = model(**inputs).logits
            total += float(divergence(logits, target, mask_of(inputs, logits)))
        return total / max(1, len(batches))


class _Best:
    """The parameters at which a figure was the least, of those at which it was looked at."""

    def __init__(self, parameters: list[nn.Parameter], figure: Callable[[], float], every: int) -> None:
        self._parameters, self._figure, self._every = parameters, figure, every
        self._steps, self.least = -1, math.inf
        self._kept = [parameter.detach().clone() for parameter in parameters]
        self.look()
        if self.least == math.inf:
            raise CalibrationError("NaN or infinite answers on held-out batches: check the data")
        self.first = self.least

    def look(self) -> None:
        """Look at every so many calls."""
        self._steps += 1
        if self._steps % self._every == 0:
            self._look()

    def _look(self) -> None:
        value = self._figure()
        if value < self.least:
            self.least = value
            self._kept = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def restore(self) -> None:
        """Look a last time, and bring the parameters back."""
        if self._steps % self._every:
            self._look()
        for parameter, kept in zip(self._parameters, self._kept, strict=True):
            parameter.copy_(kept)


@contextmanager
def _outputs(model: Any, watched: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the outputs of modules, in the order of the calls; online, those after T steps."""
    collected: list[Tensor] = []

    def keep(layer: nn.Module, arguments: Any, output: Tensor) -> None:
        running = model.simulation.steps
        # The output head answers once, for what all steps together say.
        if running is not None and layer is not model.simulation.head:
            output = model.simulation.reduced(output)
        collected.append(output)

    with hooked([module.register_forward_hook(keep) for module in watched]):
        yield collected
