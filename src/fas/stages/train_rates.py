"""Rate norm layers, first stage: the weights of the network of rates, by descent on batches in memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fas.surgery.probe import evaluating
from fas.training.descent import check_descent, cross_entropy, dense_parameters, descend
from fas.training.rates import Thresholds
from fas.types import Batches, Kept, Progress, Record, Stage


@dataclass(frozen=True)
class TrainRates(Stage):
    """Train weights and biases by cross-entropy with θ_l = p_l · σ(s), s fixed, p_l the running maximum.

    Afterwards thresholds have that value, and ``FitRates`` continues from the weights. With ``scale=None`` thresholds
    are kept instead: after ``FitRates``, which clips large rates for speed, the weights learn to do without them.

    Attributes:
        scale: s; None keeps every threshold as it is.
        epochs: passes over the labelled batches.
        learning_rate: of SGD with momentum 0.9, decaying to zero.
        weight_decay: of SGD.
        momentum: of the running maximum.
        seed: of the order of the batches.

    Raises:
        ValueError: a field outside its range.
        DataError: batches without labels.
        CalibrationError: a loss that is not finite.

    Source: Ding et al. 2021 (arXiv 2105.11654), first stage (released code: s = 10, so that σ(s) ≈ 1; SGD at 0.1).
    Deviations: batch normalisation has been folded into the layers before it; the paper trains with it. The paper does
    not return to the weights after the second stage, which ``scale=None`` is for.
    """

    scale: float | None = 10.0
    epochs: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 5e-4
    momentum: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_descent(epochs=self.epochs, learning_rate=self.learning_rate)

    def run(self, model: Any, batches: Batches, progress: Progress | None = None, kept: Kept | None = None) -> Record:
        """Train in place."""
        began, thresholds = time.perf_counter(), Thresholds(model, self.scale, self.momentum)

        def loss(batch: Mapping[str, Tensor]) -> Tensor:
            with thresholds.running():
                return cross_entropy(model, batch)

        with evaluating(model):
            history = descend(
                torch.optim.SGD(dense_parameters(model), self.learning_rate, 0.9, weight_decay=self.weight_decay),
                batches, loss, label="weights", epochs=self.epochs, seed=self.seed, progress=progress,
                # Running maxima are not kept with the weights.
                kept=kept if self.scale is None else None,
            )  # fmt: skip
        thresholds.settle()
        results = {"seconds": time.perf_counter() - began, "loss_first": history[0], "loss_last": history[-1]}
        return self.record(results)
