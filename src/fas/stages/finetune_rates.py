"""Rate norm layers, first stage, for transformers models: their Trainer on the network of rates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from fas.stages.finetune import Finetune
from fas.training.rates import Thresholds


@dataclass(frozen=True)
class FinetuneRates(Finetune):
    """``TrainRates`` with AdamW, schedules and checkpoints: weights by the model's own loss, θ fixed or p σ(s).

    Every field of ``Finetune`` holds, but for ``threshold_learning_rate`` and ``spike_price``, which are for the
    quantised network. ``fas.finetune`` takes it for its settings and trains the control beside it.

    Attributes:
        scale: s; None keeps every threshold as it is, for training after ``FitRates``.
        momentum: of the running maximum; it begins again where a run is resumed.

    Raises:
        ValueError: a value outside its range; the message names it.

    Source: Ding et al. 2021 (arXiv 2105.11654), first stage; see ``TrainRates``.
    """

    scale: float | None = None
    momentum: float = 0.1

    # Weights alone, at thresholds that are those of rates.
    trains: ClassVar[bool] = False

    @contextmanager
    def network(self, model: Any) -> Iterator[str]:
        """Have the model run the network of rates while the block lasts; set thresholds when it ends."""
        thresholds = Thresholds(model, self.scale, self.momentum)
        with thresholds.running():
            yield "rates"
        thresholds.settle()
