"""The end of stage 2: thresholds, potentials and biases trained by surrogate gradient, weights frozen."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fas.errors import CalibrationError
from fas.stages.descent import frozen
from fas.stages.losses import alignment, divergence
from fas.stages.ranks import place
from fas.surgery.replace import populations, spiking_layers
from fas.types import Progress, Record, Stage


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

    teacher: Literal["auto", "quantised", "ann"] = "auto"
    weight: float = 1.0
    learning_rate: float = 1e-3
    epochs: int = 1
    bias: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        if self.teacher not in ("auto", "quantised", "ann"):
            raise ValueError(f"teacher is {self.teacher!r}; choose one of auto, quantised, ann")
        if self.weight < 0 or self.learning_rate <= 0 or self.epochs < 1:
            raise ValueError(
                f"weight {self.weight}, learning_rate {self.learning_rate}, epochs {self.epochs}: expected a "
                "weight of at least 0, a positive learning rate and at least one epoch"
            )

    def run(self, model: Any, batches: Sequence[Mapping[str, Tensor]], progress: Progress | None = None) -> Record:
        """Train in place and report the loss of the first and of the last tenth."""
        began = time.perf_counter()
        if place()[1] > 1:
            # The spread that errors are relative to is that of the whole batch, which no process would see.
            raise ValueError(f"the losses are trained by one process, and {place()[1]} have been started: start one")
        if not batches:
            raise CalibrationError("no calibration data: at least one batch is needed")
        teacher = _Teacher(model, self._teacher(model))
        trained = _parameters(model, bias=self.bias)
        optimizer = torch.optim.Adam(trained, lr=self.learning_rate)
        total = self.epochs * len(batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        order = torch.Generator().manual_seed(self.seed)
        history: list[float] = []
        with frozen(model, trained), model.simulation.using(network="snn"):
            for _ in range(self.epochs):
                for i in torch.randperm(len(batches), generator=order).tolist():
                    loss = self._loss(model, teacher, batches[i])
                    if not bool(loss.isfinite()):
                        raise CalibrationError(
                            f"the alignment loss became {float(loss.detach())} after {len(history)} batches: lower the "
                            f"learning rate ({self.learning_rate:g}) or check the data"
                        )
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    _keep_potential(model)
                    history.append(float(loss.detach()))
                    if progress is not None:
                        progress(f"loss {history[-1]:.4f}", len(history), total)
        tenth = max(1, total // 10)
        results = {
            "seconds": time.perf_counter() - began,
            "loss_first": sum(history[:tenth]) / tenth,
            "loss_last": sum(history[-tenth:]) / tenth,
        }
        return Record("align", asdict(self), results)

    def _teacher(self, model: Any) -> Literal["quantised", "ann"]:
        if self.teacher != "auto":
            return self.teacher
        return "quantised" if any(record.stage == "finetune" for record in model.records) else "ann"

    def _loss(self, model: Any, teacher: _Teacher, batch: Mapping[str, Tensor]) -> Tensor:
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        target, targets = teacher(inputs)
        with _outputs(model) as students:
            logits = model(**inputs).logits
        mask = inputs.get("attention_mask")
        mask = mask if mask is not None and mask.shape == logits.shape[:-1] else None
        return alignment(students, targets) + self.weight * divergence(logits, target, mask)


class _Teacher:
    """Another network of the same model, with the parameters that it had at first."""

    def __init__(self, model: Any, network: Literal["quantised", "ann"]) -> None:
        self.model, self.network = model, network
        self.parameters = [(p, p.detach().clone()) for p in _parameters(model, bias=True)]

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return logits and the outputs of all spiking layers."""
        self._swap()
        try:
            with self.model.simulation.using(network=self.network), _outputs(self.model) as outputs:
                logits: Tensor = self.model(**inputs).logits
        finally:
            self._swap()
        return logits, outputs

    def _swap(self) -> None:
        swapped = []
        for parameter, other in self.parameters:
            present = parameter.data
            parameter.data = other
            swapped.append((parameter, present))
        self.parameters = swapped


def _parameters(model: nn.Module, *, bias: bool) -> list[nn.Parameter]:
    found = [p for population in populations(model).values() for p in population.parameters()]
    return found + [layer.correction for layer in spiking_layers(model).values() if bias]


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

    handles = [layer.register_forward_hook(keep) for layer in spiking_layers(model).values()]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _keep_potential(model: nn.Module) -> None:
    """Hold v_0 in [0, θ): a neuron does not begin above its threshold."""
    for population in populations(model).values():
        population.v_init.clamp_(0.0, 0.999)
