"""Tasks by name: lm-evaluation-harness for models that write text, GLUE for classifiers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fas.data.for_model import is_classifier, row_length
from fas.evaluation.kept import Kept
from fas.loading import Loaded
from fas.memory import with_fewer_rows
from fas.recording import record
from fas.storage.resume import directly
from fas.types import Measurement, Progress

if TYPE_CHECKING:
    from fas.evaluation.harness import Score
    from fas.recording import Recording


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


def _spikes(loaded: Loaded) -> bool:
    return loaded.converted and loaded.model.network == "snn"


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
            lm.once = kept.within(_part(loaded, task), lambda: lm.recording if _spikes(loaded) else None)

        def scored(batch_size: int) -> list[Score]:
            lm.batch_size_per_gpu = batch_size
            return score(lm, task, task_path=task_path, limit=limit, fewshot=fewshot)

        found = with_fewer_rows(lm.batch_size_per_gpu, scored)
    about = loaded.conditions
    rows = []
    for one in found:
        stated = {
            **about, "data": one.task, "samples": one.samples, "fewshot": one.fewshot, "stderr": one.stderr,
            "task_version": one.version, "source": _source(one.task, task_path),
        }  # fmt: skip
        rows.append(Measurement(one.metric, float(one.value), "1", conditions=stated))
    if found and found[0].spikes is not None:
        rows.append(_fired(found[0].spikes, {**about, "data": task}))
    return rows


def _glue(
    loaded: Loaded,
    task: str,
    folder: Path | None,
    limit: int | None,
    batch_size: int,
    kept: Kept | None,
    progress: Progress | None,
) -> list[Measurement]:
    from fas.evaluation.classify import classify
    from fas.evaluation.glue import HUB, glue_scores, glue_table

    table = glue_table(task, folder, limit)

    def scored(batch_size: int) -> tuple[dict[str, float], Recording | None]:
        with record(loaded.model) if _spikes(loaded) else contextlib.nullcontext() as spikes:
            once = directly if kept is None else kept.within(_part(loaded, task), lambda: spikes)
            found = classify(
                loaded.model, table, loaded.need_tokenizer(), batch_size=batch_size, max_length=row_length(loaded),
                progress=progress, once=once,
            )  # fmt: skip
        return found, spikes

    found, spikes = with_fewer_rows(batch_size, scored)
    source = HUB if folder is None else str(folder)
    stated = {**loaded.conditions, "data": task, "source": source, "samples": len(table)}
    rows = [Measurement(name, float(value), "1", conditions=stated) for name, value in glue_scores(task, found).items()]
    return rows if spikes is None else [*rows, _fired(spikes.spikes_per_neuron, stated)]


def _fired(spikes: float, stated: dict[str, Any]) -> Measurement:
    return Measurement("spikes_per_neuron", spikes, "spikes/neuron", conditions=stated)


def _part(loaded: Loaded, task: str) -> str:
    """Return the name of a part: a task and how the model is set."""
    return f"{task} {loaded.conditions}"


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
