"""Tasks by name: lm-evaluation-harness for models that write text, GLUE for classifiers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fas.data.for_model import is_classifier
from fas.evaluation.kept import Kept
from fas.evaluation.score import measure, on_table
from fas.loading import Loaded
from fas.memory import with_fewer_rows
from fas.types import Measurement, Progress


def score_task(
    loaded: Loaded,
    task: str,
    *,
    task_path: Path | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    batch_size: int = 8,
    kept: Kept | None = None,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Score a model, set to the network that is meant, on one task; count its spikes.

    Args:
        loaded: the model.
        task: its name, of lm-evaluation-harness or of GLUE.
        task_path: folder with its data or YAML files; what is not there comes from the hub.
        limit: rows, from the first.
        fewshot: examples in the prompt; the task's own if None.
        batch_size: rows per call.
        kept: keeps the batches that are done.
        progress: called with rows done and in all.

    Raises:
        DataError: a task that there is not, or data that make none.
        ValueError: few-shot prompts asked of a classifier.
    """
    if not is_classifier(loaded):
        return _harness(loaded, task, task_path, limit, fewshot, batch_size, kept)
    if fewshot is not None:
        raise ValueError(f"few-shot examples stand in a prompt, and {loaded.name} is a classifier: leave fewshot out")
    return _glue(loaded, task, task_path, limit, batch_size, kept, progress)


def _harness(
    loaded: Loaded,
    task: str,
    task_path: Path | None,
    limit: int | None,
    fewshot: int | None,
    batch_size: int,
    kept: Kept | None,
) -> list[Measurement]:
    with _quiet_harness():
        from fas.evaluation.harness import SpikingLM, Stretches, score

        options = {"pretrained": loaded.model, "tokenizer": loaded.need_tokenizer(), "batch_size": batch_size}
        if loaded.converted:
            lm: Any = SpikingLM(**options, network=loaded.model.network)
        else:
            lm = Stretches(**options, device=str(loaded.model.device))
        if kept is not None:
            spiking = loaded.converted and loaded.model.network == "snn"
            lm.once = kept.within(f"{task} {loaded.conditions}", lambda: lm.recording if spiking else None)

        def scored(batch_size: int) -> list[Measurement]:
            lm.batch_size_per_gpu = batch_size
            return score(lm, task, task_path=task_path, limit=limit, fewshot=fewshot)

        found = with_fewer_rows(lm.batch_size_per_gpu, scored)
    about = loaded.conditions
    return [
        replace(row, conditions={**about, **row.conditions, "source": _source(row.conditions["data"], task_path)})
        for row in found
    ]


def _glue(
    loaded: Loaded,
    task: str,
    folder: Path | None,
    limit: int | None,
    batch_size: int,
    kept: Kept | None,
    progress: Progress | None,
) -> list[Measurement]:
    from fas.evaluation.glue import GLUE, HUB, glue_table

    scores = on_table(task, glue_table(task, folder, limit), batch_size)
    source = HUB if folder is None else str(folder)
    rows = measure(loaded, scores, kept=kept, progress=progress, source=source)
    return [row for row in rows if row.quantity in (*GLUE[task].metrics, "spikes_per_neuron")]


def _source(task: str, folder: Path | None) -> str:
    from fas.evaluation.local_tasks import local_names

    local = folder is not None and task in local_names(folder)
    return str(folder) if local else "lm-evaluation-harness"


@contextlib.contextmanager
def _quiet_harness() -> Iterator[None]:
    """Keep what the harness logs about every default to itself, errors apart."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
