"""Progressive reduction of bits: each quantised network starts from the finer one that was trained before it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

from fas.stages.set_thresholds import SetThresholds
from fas.stages.train_quantised import TrainQuantised
from fas.surgery.parameters import undone_on_error
from fas.training.descent import check_descent, inputs_of
from fas.types import Batches, Kept, Progress, Record, Stage

# Batches whose activations thresholds are set from: the walk holds them all in memory.
_LOOKED_AT = 4


@dataclass(frozen=True)
class ReduceBits(Stage):
    """Train the quantised network with 2^b − 1 levels for falling b, by cross-entropy on labelled batches.

    Weights, biases and thresholds are trained by SGD, the floor passing gradients straight through; dropout is off.
    Afterwards the model has the levels of the last b, and as many time steps.

    Attributes:
        bits: b of every round, in order.
        epochs: passes over the batches in every round.
        learning_rate: of the weights and thresholds (ln θ), decaying to zero in every round.
        momentum: of SGD.
        weight_decay: of SGD.
        refit: start every round from thresholds of the smallest squared error for its levels, on the activations that
            the weights of the round before have in the dense network; off, from the thresholds of that round.
        seed: of the order of the batches.

    Raises:
        ValueError: a field outside its range.
        DataError: batches without labels.
        CalibrationError: a loss that is not finite.

    Source: Hu et al. 2023 (arXiv 2305.19868) and its released code: 32, 4, 3, 2 bits (learning rates 4e-2 and weight
    decay 1e-4 for CIFAR-10). Deviations: the code quantises weights to b bits as well (sums of powers of two); it
    learns θ itself, here ln θ; it takes thresholds over from the finer network (``refit=False``), whose range is too
    wide for fewer levels, and has hundreds of epochs to mend that.
    """

    bits: tuple[int, ...] = (4, 3, 2)
    epochs: int = 1
    learning_rate: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 1e-4
    refit: bool = True
    seed: int = 0

    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_descent(epochs=self.epochs, learning_rate=self.learning_rate)
        bits = tuple(self.bits)
        if not bits or any(type(b) is not int or not 1 <= b <= 8 for b in bits) or list(bits) != sorted(bits)[::-1]:
            raise ValueError(f"bits is {self.bits!r}; expected whole numbers from 8 to 1, falling")

    def run(self, model: Any, batches: Batches, progress: Progress | None = None, kept: Kept | None = None) -> Record:
        """Train in place, one round after the other."""
        began, results = time.perf_counter(), {}
        training = TrainQuantised(self.epochs, self.learning_rate, self.momentum, self.weight_decay, self.seed)
        levels, timesteps = model.levels, model.timesteps
        try:
            with undone_on_error(model.parameters()):
                for bits in self.bits:
                    model.levels = model.settings.timesteps = 2**bits - 1
                    if self.refit:
                        SetThresholds(rule="error").run(model, [inputs_of(batch) for batch in batches[:_LOOKED_AT]])
                    results[f"loss_{bits}_bits"] = training.run(model, batches, progress).results["loss_last"]
        except BaseException:
            model.levels, model.settings.timesteps = levels, timesteps
            raise
        return self.record({"seconds": time.perf_counter() - began, **results})
