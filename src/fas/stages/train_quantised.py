"""The quantised network of a classifier, trained on labelled batches in memory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from fas.surgery.probe import evaluating
from fas.surgery.replace import populations, spiking_layers
from fas.training.descent import check_descent, cross_entropy, descend
from fas.types import Progress, Record, Stage


@dataclass(frozen=True)
class TrainQuantised(Stage):
    """Train the quantised network at its present levels by cross-entropy, from the present thresholds.

    Weights, biases and thresholds (ln θ) are trained by SGD, the floor passing gradients straight through; dropout is
    off. For plain modules; ``Finetune`` trains transformers models, with their optimisers and checkpoints.

    Attributes:
        epochs: passes over the batches.
        learning_rate: of the weights and thresholds, decaying to zero.
        momentum: of SGD.
        weight_decay: of SGD.
        seed: of the order of the batches.

    Raises:
        ValueError: a field outside its range.
        CalibrationError: batches without labels, or a loss that is not finite.

    Source: Bu et al., ICLR 2022 (arXiv 2303.04347), whose training starts from random weights with learning rate 0.1.
    """

    epochs: int = 1
    learning_rate: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0

    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check every field."""
        check_descent(epochs=self.epochs, learning_rate=self.learning_rate)

    def run(self, model: Any, batches: Sequence[Mapping[str, Tensor]], progress: Progress | None = None) -> Record:
        """Train in place."""
        began = time.perf_counter()
        thresholds = [population.log_threshold for population in populations(model).values()]
        with evaluating(model), model.simulation.using(network="quantised", observers=[]):
            history = descend(
                [*dense_parameters(model), *thresholds], batches, lambda batch: cross_entropy(model, batch),
                label=f"{model.levels} levels", epochs=self.epochs, learning_rate=self.learning_rate,
                momentum=self.momentum, weight_decay=self.weight_decay, seed=self.seed, progress=progress,
            )  # fmt: skip
        model.reset()
        tenth = max(1, len(history) // 10)
        results = {"seconds": time.perf_counter() - began, "loss_last": sum(history[-tenth:]) / tenth}
        return self.record(results)


def dense_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return what the dense network has and may be trained: everything but the neurons and their corrections."""
    own = {id(p) for population in populations(model).values() for p in population.parameters()}
    own |= {id(layer.correction) for layer in spiking_layers(model).values()}
    return [p for p in model.parameters() if id(p) not in own and p.requires_grad]
