"""The nine tasks of GLUE for classifiers: where their rows are, and which scores count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fas.data.table import Table, hub_rows, load_table
from fas.errors import DataError

HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class _GlueTask:
    file: str  # with labels, in a folder as GLUE's own archive lays it out
    columns: tuple[str, ...]  # of the sentences in the hub's data set
    metrics: tuple[str, ...]  # that the benchmark reports, of those that ``classify`` gives
    labels: tuple[str, ...] = ()  # in GLUE's order where the file has names; empty for numbers
    split: str = "validation"  # of the hub's data set


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
        DataError: unknown task, a missing or malformed file, no hub.
        MissingExtraError: the hub is asked for and the package datasets is not installed.
    """
    if task not in GLUE:
        raise DataError(f"{task!r} is not a GLUE task: choose among {', '.join(GLUE)}")
    found = GLUE[task]
    if folder is None:
        table = as_table(hub_rows(f"{HUB}:{task.removesuffix('_mismatch')}", found.split), task)
    else:
        kind: Any = "regression" if "pearson" in found.metrics else None
        table = load_table(folder / found.file, task=kind, label_names=found.labels or None)
    pairs = None if table.pairs is None else table.pairs[:limit]
    return replace(table, sentences=table.sentences[:limit], pairs=pairs, labels=table.labels[:limit])


def as_table(rows: Sequence[Mapping[str, Any]], task: str) -> Table:
    """Return rows of the hub, with columns as ``GLUE`` names them and ``label``, as a table."""
    found = GLUE[task]
    first, *second = found.columns
    sentences, labels = [row[first] for row in rows], [row["label"] for row in rows]
    pairs = [row[second[0]] for row in rows] if second else None
    if "pearson" in found.metrics:
        return Table(sentences, pairs, [float(label) for label in labels], "regression")
    return Table(sentences, pairs, [int(label) for label in labels], "classification", found.labels or ("0", "1"))
