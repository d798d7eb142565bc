"""Scores of a classifier on labelled rows of text, or on images; of a regressor on rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fas.data.table import Table, check_ids, tokenise_table
from fas.errors import DataError
from fas.evaluation import metrics
from fas.storage.resume import Once, directly
from fas.surgery.probe import evaluating
from fas.types import Progress


def classify(
    model: nn.Module,
    rows: Table | Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    batch_size: int = 32,
    max_length: int = 128,
    progress: Progress | None = None,
    once: Once = directly,
) -> dict[str, float]:
    """Score a model with a sequence classification head on labelled rows.

    Rows of similar length share a batch, so that little is padded; the scores do not depend on
    the order. Where the model and the table name the same classes in another order
    (``model.config.id2label``), predictions are mapped by name; else index i means class i.

    Args:
        model: called as ``model(**inputs).logits`` giving [B, classes], or [B, 1] for regression.
            It runs in evaluation mode without gradients, its mode is restored.
        rows: a table, or tokenised rows as ``tokenise_table`` gives them (``labels`` or ``label``:
            int for classes, float for regression).
        tokenizer: pads the rows, and tokenises a table.
        batch_size: rows per call.
        max_length: tokens at which the rows of a table are cut.
        progress: called with what is done, rows done and in all, after each call of the model.
        once: does every call, or returns what an earlier run has found (see ``fas.storage.resume``).

    Returns:
        For classes ``accuracy``, ``f1`` (of class 1, for two classes) or ``f1_macro`` (for more),
        ``matthews``; for regression ``pearson``, ``spearman``. NaN where a score is undefined (see
        ``fas.evaluation.metrics``), and for all of them where the model gives a NaN.

    Raises:
        DataError: no rows, rows without labels, rows or labels that do not fit the model.
        ValueError: ``batch_size`` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: expected at least 1 row per call")
    names = rows.label_names if isinstance(rows, Table) else ()
    encoded = tokenise_table(rows, tokenizer, max_length) if isinstance(rows, Table) else rows
    labels, inputs = _split_labels(encoded)
    config = getattr(model, "config", None)
    check_ids([row["input_ids"] for row in inputs], tokenizer, getattr(config, "vocab_size", None))
    _check_lengths(inputs, config)
    logits = _logits(model, inputs, tokenizer, batch_size, progress, once)
    scores = _scores(logits, labels, _class_map(model, names))
    # argmax would turn a NaN into a class.
    return dict.fromkeys(scores, math.nan) if logits.isnan().any() else scores


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
    if not batches or any("labels" not in batch for batch in batches):
        raise DataError("expected at least one batch, and 'labels' in every one")
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


def _split_labels(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[dict[str, Any]]]:
    if not len(rows):
        raise DataError("no rows to classify: expected at least one labelled row")
    labels, inputs = [], []
    for number, row in enumerate(rows):
        label = row.get("labels", row.get("label"))
        if label is None:
            raise DataError(f"row {number} has no label (keys {list(row)}): expected 'labels' or 'label'")
        labels.append(label.item() if hasattr(label, "item") else label)
        inputs.append({key: value for key, value in row.items() if key not in ("labels", "label")})
    return labels, inputs


def _check_lengths(inputs: list[dict[str, Any]], config: Any) -> None:
    context = getattr(config, "max_position_embeddings", None)
    longest = max(len(row["input_ids"]) for row in inputs)
    if context is not None and longest > context:
        raise DataError(
            f"a row of {longest} tokens is longer than the model's context of {context}: "
            f"pass max_length={context}, or tokenise with it"
        )


def _logits(
    model: nn.Module,
    inputs: list[dict[str, Any]],
    tokenizer: Any,
    batch_size: int,
    progress: Progress | None,
    once: Once,
) -> Tensor:
    """Return float32 logits [N, classes] on the CPU, in the order of ``inputs``."""
    from transformers import DataCollatorWithPadding

    pad = DataCollatorWithPadding(tokenizer)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    order = sorted(range(len(inputs)), key=lambda row: -len(inputs[row]["input_ids"]))

    def answers(rows: list[int]) -> list[list[float]]:
        batch = pad([inputs[row] for row in rows])
        output = model(**{key: value.to(device) for key, value in batch.items()})
        found: list[list[float]] = output.logits.float().tolist()
        return found

    parts: list[list[float]] = []
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            # float32 passes through Python's numbers, and through JSON, unchanged.
            parts += once(f"rows {start} to {start + len(rows)}", partial(answers, rows))
            if progress is not None:
                progress("scoring rows", min(start + batch_size, len(order)), len(order))
    logits = torch.tensor(parts, dtype=torch.float32)
    in_order = torch.empty_like(logits)
    in_order[torch.tensor(order)] = logits
    return in_order


def _class_map(model: nn.Module, names: Sequence[str]) -> list[int] | None:
    """Return the table's class of each output of the model, None where indices agree as they are."""
    id2label = getattr(getattr(model, "config", None), "id2label", None) or {}
    own = [str(id2label[key]).lower() for key in sorted(id2label)]
    wanted = [name.lower() for name in names]
    if own == wanted or sorted(own) != sorted(wanted) or len(set(own)) != len(own):
        return None
    return [wanted.index(name) for name in own]


def _scores(logits: Tensor, labels: list[Any], class_map: list[int] | None) -> dict[str, float]:
    outputs = logits.shape[-1]
    if any(isinstance(label, float) for label in labels):
        if outputs != 1:
            raise DataError(f"labels are scores, but the model has {outputs} outputs: load it with num_labels=1")
        values = logits[:, 0].numpy()
        return {"pearson": metrics.pearson(values, labels), "spearman": metrics.spearman(values, labels)}
    low, high = min(labels), max(labels)
    if outputs == 1:
        raise DataError(
            f"labels are classes 0 to {high}, but the model has one output (regression): "
            f"load it with num_labels={high + 1}, or give float labels"
        )
    if low < 0 or high >= outputs:
        wrong = low if low < 0 else high
        raise DataError(
            f"label {wrong} is outside the model's {outputs} classes: "
            "take labelled rows, and a model fine-tuned for them"
        )
    classes = logits.argmax(dim=-1)
    if class_map is not None:
        classes = torch.tensor(class_map)[classes]
    found = classes.numpy()
    f1 = {"f1": metrics.f1(found, labels)} if outputs == 2 else {"f1_macro": metrics.f1_macro(found, labels)}
    return {"accuracy": metrics.accuracy(found, labels), **f1, "matthews": metrics.matthews(found, labels)}
