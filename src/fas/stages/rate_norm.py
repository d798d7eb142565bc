"""Rate norm layers, second stage: thresholds that make firing rates converge fast, weights fixed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fas.layers.population import Population
from fas.surgery.parameters import frozen
from fas.surgery.probe import evaluating
from fas.surgery.replace import populations
from fas.training.descent import answer, check_batches, check_descent, descend, inputs_of
from fas.training.rates import omega, rate_inference_loss, rates, running_maxima
from fas.types import Batches, Kept, Progress, Record, Stage


@dataclass(frozen=True)
class FitRates(Stage):
    r"""Fit θ_l = p_l · σ(s_l) by 1 − cos(y_ANN, y) + λ · mean_l Ω_l over s alone, Ω_l = Σ r_l / ‖r_l‖².

    r_l = clip(ReLU(x_l)/θ_l, 0, 1) is the firing rate that layer l tends to, p_l the running maximum of ReLU(x_l),
    y the logits of the network of rates, y_ANN those at the s that the fit starts from. The fit curve
    falls at least as fast as Ω/T for even input, so that a small Ω means few time steps. Layers after site l
    receive θ_l r_l, so that the weights of the dense network serve as they are.

    Attributes:
        scale: s at the start, of every layer; σ(2.5) = 0.92 of the maximum.
        weight: λ.
        epochs: passes over the batches; 0 leaves s at its start.
        learning_rate: of SGD with momentum 0.9 on s.
        weight_decay: on s.
        shared: one s for all layers.
        momentum: of the running maximum, which starts at that of the first batch.
        seed: of the order of the batches.

    Raises:
        ValueError: a field outside its range.
        CalibrationError: no batches, a site that is never above zero, or a loss that is not finite.
        SiteError: a site of both signs.

    Source: Ding et al. 2021 (arXiv 2105.11654), the rate norm layer, the rate inference loss and the second stage of
    the training. The released code adds the Ω of the logits and takes y_ANN at the present s, so that the first
    term never moves; the paper compares with the network of the first stage, as here. Deviation: wires carry θ r,
    not r, and the running maximum starts at a batch, where the code starts at 1.
    """

    scale: float = 2.5
    weight: float = 0.1
    epochs: int = 10
    learning_rate: float = 2.0
    weight_decay: float = 1e-4
    shared: bool = False
    momentum: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_descent(epochs=self.epochs, learning_rate=self.learning_rate, least_epochs=0)
        if self.weight < 0 or not 0 < self.momentum <= 1:
            raise ValueError(
                f"weight is {self.weight} and momentum {self.momentum}: expected a weight of at least 0 and a momentum "
                "above 0 and at most 1"
            )

    def run(self, model: Any, batches: Batches, progress: Progress | None = None, kept: Kept | None = None) -> Record:
        """Set thresholds in place; v_0 = 0 as the theory assumes, no offset."""
        began = time.perf_counter()
        check_batches(batches)
        found = populations(model)
        start = torch.tensor(float(self.scale))
        maxima = running_maxima(model, batches, float(start.sigmoid()), self.momentum)
        number = 1 if self.shared else len(found)
        scales = [nn.Parameter(start.clone().to(next(iter(maxima.values())).device)) for _ in range(number)]
        scale_of = {p: scales[0 if self.shared else i] for i, p in enumerate(found.values())}

        def threshold(population: Population) -> Tensor:
            return maxima[population] * scale_of[population].sigmoid()

        def logits(batch: Mapping[str, Tensor], value: Callable[[Population], Tensor]) -> tuple[Tensor, list[Tensor]]:
            with rates(model, value) as seen:
                made = answer(model(**inputs_of(batch)))
            return made, list(seen.values())

        def loss(batch: Mapping[str, Tensor]) -> Tensor:
            with torch.no_grad():
                target, _ = logits(batch, lambda p: maxima[p] * start.to(maxima[p].device).sigmoid())
            made, seen = logits(batch, threshold)
            return rate_inference_loss(made, target, seen, self.weight)

        history: list[float] = []
        with evaluating(model), frozen(model):
            if self.epochs:
                history = descend(
                    torch.optim.SGD(scales, self.learning_rate, 0.9, weight_decay=self.weight_decay),
                    batches, loss, label="thresholds", epochs=self.epochs, seed=self.seed, progress=progress, kept=kept,
                )  # fmt: skip
            figures = {}
            omegas = dict.fromkeys(found.values(), 0.0)
            for batch in batches:
                with rates(model, threshold) as seen:
                    model(**inputs_of(batch))
                for population, rate in seen.items():
                    omegas[population] += float(omega(rate)) / len(batches)
            for path, population in found.items():
                value = threshold(population).detach()
                population.set(value, torch.zeros_like(value), torch.zeros_like(value))
                population.reset()
                scale = float(scale_of[population].detach())
                figures[path] = {"threshold_mean": float(value), "scale": scale, "omega": omegas[population]}
        results = {"seconds": time.perf_counter() - began}
        if history:
            results |= {"loss_first": history[0], "loss_last": history[-1]}
        return self.record(results, figures)
