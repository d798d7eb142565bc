"""Rate norm layers, first stage, for transformers models: their Trainer on the network of rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fas.stages.finetune import (
    Finetune,
    _check_data,
    _check_precision,
    _collator,
    _description,
    _distillation,
    _evaluation,
    _require_thresholds,
)
from fas.stages.train_rates import Thresholds
from fas.stages.training import Collator, train
from fas.types import Progress, Record


@dataclass(frozen=True)
class FinetuneRates(Finetune):
    """``TrainRates`` with AdamW, schedules and checkpoints: weights by the model's own loss, θ fixed or p σ(s).

    Every field of ``Finetune`` holds, but for ``threshold_learning_rate`` and ``spike_price``, which are for the
    quantised network. ``fas.stages.finetune.finetune`` takes it for its settings and trains the control beside it.

    Attributes:
        scale: s; None keeps every threshold as it is, for training behind ``FitRates``.
        momentum: of the running maximum; it begins anew where a run is resumed.

    Raises:
        ValueError: a value outside its range; the message names it.

    Source: Ding et al. 2021 (arXiv 2105.11654), first stage; see ``TrainRates``.
    """

    scale: float | None = None
    momentum: float = 0.1

    def run(
        self,
        model: Any,
        dataset: Any,
        *,
        output_dir: str | Path,
        eval_dataset: Any = None,
        collator: Collator | None = None,
        tokenizer: Any = None,
        resume: bool = True,
        progress: Progress | None = None,
        callbacks: Sequence[Any] = (),
    ) -> Record:
        """Fine-tune the network of rates in place; arguments, checkpoints and errors as ``Finetune.run``."""
        _require_thresholds(model)
        _check_precision(self, model)
        _check_data(model, dataset)
        batch, thresholds = _collator(collator, tokenizer), Thresholds(model, self.scale, self.momentum)
        with thresholds.running():
            results = train(
                self, model, dataset, Path(output_dir), batch,
                description={**_description(self, model, dataset), "network": "rates"},
                evaluate=_evaluation(self, model, eval_dataset, batch), distillation=_distillation(self, model),
                resume=resume, progress=progress, callbacks=callbacks,
            )  # fmt: skip
        thresholds.settle()
        return Record("finetune_rates", asdict(self), results)
