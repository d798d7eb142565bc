"""Rate norm layers, first stage: the weights of the network of rates, thresholds following the running maximum."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fas.stages.descent import check_descent, cross_entropy, descend
from fas.stages.rate_norm import _Maxima, checked, rates
from fas.surgery.probe import evaluating
from fas.surgery.replace import populations, spiking_layers
from fas.types import Progress, Record, Stage


@dataclass(frozen=True)
class TrainRates(Stage):
    """Train weights and biases by cross-entropy with θ_l = p_l · σ(s), s fixed, p_l the running maximum.

    Afterwards thresholds have that value, and ``FitRates`` goes on from the weights.

    Attributes:
        scale: s.
        epochs: passes over the labelled batches.
        learning_rate: of SGD with momentum 0.9, decaying to zero.
        weight_decay: of SGD.
        momentum: of the running maximum.
        seed: of the order of the batches.

    Raises:
        ValueError: a field outside its range.
        CalibrationError: batches without labels, or a loss that is not finite.

    Source: Ding et al. 2021 (arXiv 2105.11654), first stage (released code: s = 10, so that σ(s) ≈ 1; SGD at 0.1).
    Deviation: batch normalisation has been folded into the layers before it; the paper trains with it.
    """

    scale: float = 10.0
    epochs: int = 1
    learning_rate: float = 1e-2
    weight_decay: float = 5e-4
    momentum: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        check_descent(epochs=self.epochs, learning_rate=self.learning_rate)

    def run(self, model: Any, batches: Sequence[Mapping[str, Tensor]], progress: Progress | None = None) -> Record:
        """Train in place."""
        began, maxima = time.perf_counter(), _Maxima(self.momentum)
        share = float(torch.tensor(self.scale).sigmoid())
        own = {id(p) for population in populations(model).values() for p in population.parameters()}
        own |= {id(layer.correction) for layer in spiking_layers(model).values()}
        weights = [p for p in model.parameters() if id(p) not in own and p.requires_grad]

        def loss(batch: Mapping[str, Tensor]) -> Tensor:
            with rates(model, lambda population: maxima.values[population] * share, maxima):
                return cross_entropy(model, batch)

        with evaluating(model):
            history = descend(
                weights, batches, loss, label="weights", epochs=self.epochs, learning_rate=self.learning_rate,
                weight_decay=self.weight_decay, seed=self.seed, progress=progress,
            )  # fmt: skip
        for population, top in checked(model, maxima.values).items():
            population.set(top * share, torch.zeros_like(top), torch.zeros_like(top))
        model.reset()
        results = {"seconds": time.perf_counter() - began, "loss_first": history[0], "loss_last": history[-1]}
        return Record("train_rates", asdict(self), results)
