"""Stage 1 inside a comparison: methods that have one, and the dense network beside them, on the same data."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fas.data.for_model import Sample, is_classifier, training_rows
from fas.loading import Loaded
from fas.plain_networks import is_plain, photographs
from fas.types import Progress, Stage

# Methods whose papers train a network on labels or text.
TRAINED = ("fas", "fas_paper", "qcfs_only", "fast_snn", "rate_norm")
# Of plain networks: images of a step at least, and the rate of SGD, for weights that are trained already.
_ROWS, _RATE = 64, 2e-3


@dataclass
class Control:
    """The dense network after the same training.

    Attributes:
        loaded: that network.
        seconds: of its training.
    """

    loaded: Loaded
    seconds: float


class Training:
    """So many steps for every method that has a stage 1, from its own thresholds, and once for the control.

    ``rate_norm`` trains a network of rates, its stage-2 thresholds fixed; all others train the quantised network.

    Args:
        dense: the dense model.
        source: name of the training data.
        steps: optimiser steps.
        sample: window of text, rows of a step (of a plain network at least 64 images), and seed of their order.

    Attributes:
        control: the dense network that was trained beside the last method, None where none was.
        has_control: a control has been measured, and no other is trained.
    """

    def __init__(self, dense: Loaded, source: str, steps: int, sample: Sample) -> None:
        self.dense, self.source, self.steps, self.sample = dense, source, steps, sample
        self.control: Control | None = None
        self.has_control = False

    def run(self, loaded: Loaded, method: Any, batches: Sequence[Any], progress: Progress | None = None) -> float:
        """Train a converted model in place, and the control the first time.

        Returns:
            Seconds, without the control's.
        """
        from fas.conversion import name_of

        began = time.perf_counter()
        rates = name_of(method) == "rate_norm"
        control = (self._plain if is_plain(self.dense) else self._transformer)(loaded, rates, progress)
        stages: tuple[Stage, ...] = method.tuning() if hasattr(method, "tuning") else ()
        for stage in stages:
            loaded.model.records.append(stage.run(loaded.model, batches))
        loaded.model.eval()
        seconds = time.perf_counter() - began
        self.control = control
        return seconds if control is None else seconds - control.seconds

    def _transformer(self, loaded: Loaded, rates: bool, progress: Progress | None) -> Control | None:
        from fas.stages.finetune import Finetune
        from fas.stages.finetune_rates import FinetuneRates
        from fas.training.finetuning import finetune, language_modelling

        sample = self.sample
        limit = self.steps * sample.batch_size * (sample.window or 512)
        rows = training_rows(self.dense, self.source, replace(sample, tokens=limit))
        dataset = rows if is_classifier(loaded) else language_modelling(rows)
        kind = FinetuneRates if rates else Finetune
        settings = kind(max_steps=self.steps, batch_size=sample.batch_size, seed=sample.seed)
        with tempfile.TemporaryDirectory() as directory:
            record, dense = finetune(
                loaded.model, dataset, settings, output_dir=directory, tokenizer=loaded.tokenizer,
                control=not self.has_control, progress=progress,
            )  # fmt: skip
        if dense is None:
            return None
        trained = replace(self.dense, model=dense.to(self.dense.model.device).eval())
        return Control(trained, record.results["control_seconds"])

    def _plain(self, loaded: Loaded, rates: bool, progress: Progress | None) -> Control | None:
        from torch.optim import SGD

        from fas.conversion import revert
        from fas.stages.train_quantised import TrainQuantised
        from fas.stages.train_rates import TrainRates
        from fas.surgery.probe import evaluating
        from fas.training.descent import cross_entropy, descend

        labelled = self._labelled()
        dense = None if self.has_control else revert(copy.deepcopy(loaded.model))
        stage: TrainRates | TrainQuantised = TrainQuantised(learning_rate=_RATE)
        if rates:
            stage = TrainRates(None, learning_rate=_RATE)
        loaded.model.records.append(stage.run(loaded.model, labelled, progress))
        if dense is None:
            return None
        began = time.perf_counter()
        with evaluating(dense):
            descend(
                SGD(dense.parameters(), _RATE, 0.9, weight_decay=stage.weight_decay), self._labelled(),
                lambda batch: cross_entropy(dense, batch), label="control", epochs=1, progress=progress,
            )  # fmt: skip
        return Control(replace(self.dense, model=dense.eval()), time.perf_counter() - began)

    def _labelled(self) -> Sequence[Any]:
        """Return a batch for every step, images mirrored and shifted; the same ones for each that trains."""
        from fas.data.images import AugmentedBatches

        rows, seed = max(self.sample.batch_size, _ROWS), self.sample.seed
        batches = photographs(self.dense, self.source, "train", limit=self.steps * rows, rows=rows, seed=seed)
        name = next(key for key in batches[0] if key != "labels")
        shift = min(4, batches[0][name].shape[-1] // 8)
        return _Repeated(AugmentedBatches(batches, shift=shift, name=name, seed=seed), self.steps)


class _Repeated(Sequence[Any]):
    """As many batches as steps, from the beginning again where there are fewer."""

    def __init__(self, batches: Sequence[Any], steps: int) -> None:
        self._batches, self._steps = batches, steps

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: Any) -> Any:
        # What iterates a sequence by its index ends at this error alone.
        return self._batches[range(self._steps)[index] % len(self._batches)]
