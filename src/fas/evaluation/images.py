"""Accuracy of an image classifier on labelled batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fas.errors import DataError
from fas.surgery.probe import evaluating
from fas.types import Progress


def classify_images(
    model: Any, batches: Sequence[Mapping[str, Tensor]], *, progress: Progress | None = None
) -> dict[str, float]:
    """Return how often the largest logit is at the label, and among the five largest.

    Args:
        model: gives logits [B, classes], or an output that has them; a plain module or a transformers model, dense
            or converted. It runs in evaluation mode, its mode is restored.
        batches: inputs of its forward by name, with ``labels`` [B].
        progress: called with what is done, images done and in all, after each batch.

    Returns:
        ``accuracy``, and ``top5`` where there are more than five classes; shares from 0 to 1.

    Raises:
        DataError: no batches, batches without labels, labels that the model has no output for, or logits that
            are NaN, of which the largest would be a class by accident.
    """
    _check(batches)
    total = sum(len(batch["labels"]) for batch in batches)
    right, near, done = 0, 0, 0
    with evaluating(model):
        for batch in batches:
            output = model(**{name: value for name, value in batch.items() if name != "labels"})
            logits: Tensor = output if isinstance(output, Tensor) else output.logits
            labels = batch["labels"].to(logits.device)
            if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[-1]:
                raise DataError(
                    f"labels reach from {labels.min()} to {labels.max()}; the model has {logits.shape[-1]} classes"
                )
            if bool(logits.isnan().any()):
                raise DataError("the model gives NaN on an image: check its weights and thresholds")
            best = logits.topk(min(5, logits.shape[-1]), -1).indices
            right += int((best[:, 0] == labels).sum())
            near += int((best == labels.unsqueeze(1)).any(1).sum())
            done += len(labels)
            if progress is not None:
                progress("scoring images", done, total)
    scores = {"accuracy": right / total}
    return scores if logits.shape[-1] <= 5 else {**scores, "top5": near / total}


def _check(batches: Sequence[Mapping[str, Tensor]]) -> None:
    if not batches or any("labels" not in batch for batch in batches):
        raise DataError("expected at least one batch, and 'labels' in every one")
