"""The nine tasks of GLUE for classifiers: where their rows are, and which scores count."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fas.data.table import Table, load_table
from fas.errors import DataError, MissingExtraError

HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class _GlueTask:
    """One task.

    Attributes:
        file: with labels, in a folder as GLUE's own archive lays it out.
        columns: of the sentences in the hub's data set.
        metrics: that the benchmark reports, of those that ``classify`` gives.
        labels: names of the classes in GLUE's order where the file has names; empty for numbers.
        split: of the hub's data set.
    """

    file: str
    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    labels: tuple[str, ...] = ()
    split: str = "validation"


_PAIR = ("sentence1", "sentence2")
_NLI = ("entailment", "neutral", "contradiction")
_BINARY_NLI = ("entailment", "not_entailment")
GLUE = {
    "cola": _GlueTask("CoLA/dev.tsv", ("sentence",), ("matthews",)),
    "sst2": _GlueTask("SST-2/dev.tsv", ("sentence",), ("accuracy",)),
    "mrpc": _GlueTask("MRPC/dev.tsv", _PAIR, ("accuracy", "f1")),
    "stsb": _GlueTask("STS-B/dev.tsv", _PAIR, ("pearson", "spearman")),
    "qqp": _GlueTask("QQP/dev.tsv", ("question1", "question2"), ("accuracy", "f1")),
    "mnli": _GlueTask(
        "MNLI/dev_matched.tsv", ("premise", "hypothesis"), ("accuracy",), _NLI, "validation_matched"
    ),
    "mnli_mismatch": _GlueTask(
        "MNLI/dev_mismatched.tsv", ("premise", "hypothesis"), ("accuracy",), _NLI, "validation_mismatched"
    ),
    "qnli": _GlueTask("QNLI/dev.tsv", ("question", "sentence"), ("accuracy",), _BINARY_NLI),
    "rte": _GlueTask("RTE/dev.tsv", _PAIR, ("accuracy",), _BINARY_NLI),
    "wnli": _GlueTask("WNLI/dev.tsv", _PAIR, ("accuracy",)),
}  # fmt: skip
"""Tasks by the names of lm-evaluation-harness and of the hub.

Source: Wang et al. 2018 (arXiv 1804.07461), table 1: Matthews' correlation for CoLA, accuracy and F1 for MRPC and
QQP, Pearson and Spearman for STS-B, accuracy for the others, MNLI in two parts.
"""


def glue_table(task: str, folder: Path | None = None, limit: int | None = None) -> Table:
    """Return the labelled development rows of a GLUE task.

    Args:
        task: a key of ``GLUE``.
        folder: GLUE as its archive unpacks (``SST-2/dev.tsv``, …); None reads it from the hub.
        limit: rows, from the first; all if None.

    Raises:
        DataError: unknown task, a missing or malformed file.
        MissingExtraError: the hub is asked for and the package datasets is not installed.
        OSError: no hub.
    """
    if task not in GLUE:
        raise DataError(f"{task!r} is no task of GLUE: choose among {', '.join(GLUE)}")
    return _first(_from_hub(task) if folder is None else _from_folder(task, folder), limit)


def as_table(rows: Any, task: str) -> Table:
    """Return a data set of the hub, with columns as ``GLUE`` names them and ``label``, as a table."""
    found = GLUE[task]
    first, *second = found.columns
    labels = list(rows["label"])
    pairs = list(rows[second[0]]) if second else None
    if "pearson" in found.metrics:
        return Table(list(rows[first]), pairs, [float(label) for label in labels], "regression")
    names = found.labels or ("0", "1")
    return Table(list(rows[first]), pairs, [int(label) for label in labels], "classification", names)


def glue_scores(task: str, scores: dict[str, float]) -> dict[str, float]:
    """Return those scores of ``classify`` that the benchmark reports for a task, in its order."""
    return {name: scores[name] for name in GLUE[task].metrics}


def _first(table: Table, rows: int | None) -> Table:
    pairs = None if table.pairs is None else table.pairs[:rows]
    return replace(table, sentences=table.sentences[:rows], pairs=pairs, labels=table.labels[:rows])


def _from_folder(task: str, folder: Path) -> Table:
    found = GLUE[task]
    regression = "pearson" in found.metrics
    return load_table(folder / found.file, task="regression" if regression else None, label_names=found.labels or None)


def _from_hub(task: str) -> Table:
    try:
        from datasets import load_dataset
    except ModuleNotFoundError:
        raise MissingExtraError("GLUE from the hub needs datasets: pip install 'fas[data]', or pass a folder") from None
    rows = load_dataset(HUB, task.removesuffix("_mismatch"), split=GLUE[task].split)
    return as_table(rows, task)
