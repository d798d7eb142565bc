"""The quantised network of a classifier, trained on labelled batches in memory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from fas.surgery.probe import evaluating
from fas.surgery.replace import populations
from fas.training.descent import check_descent, cross_entropy, dense_parameters, descend
from fas.types import Batches, Kept, Progress, Record, Stage


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
        DataError: batches without labels.
        CalibrationError: a loss that is not finite.

    Source: Bu et al., ICLR 2022 (arXiv 2303.04347), whose training starts from random weights with learning rate 0.1.
    """

    epochs: int = 1
    learning_rate: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0

    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_descent(epochs=self.epochs, learning_rate=self.learning_rate)

    def run(self, model: Any, batches: Batches, progress: Progress | None = None, kept: Kept | None = None) -> Record:
        """Train in place."""
        began = time.perf_counter()
        trained = [*dense_parameters(model), *(p.log_threshold for p in populations(model).values())]
        with evaluating(model), model.simulation.using(network="quantised", observers=[]):
            history = descend(
                torch.optim.SGD(trained, self.learning_rate, self.momentum, weight_decay=self.weight_decay),
                batches, partial(cross_entropy, model), label=f"{model.levels} levels", epochs=self.epochs,
                seed=self.seed, progress=progress, kept=kept,
            )  # fmt: skip
        model.reset()
        tenth = max(1, len(history) // 10)
        results = {"seconds": time.perf_counter() - began, "loss_last": sum(history[-tenth:]) / tenth}
        return self.record(results)
