"""The verb: scores and spikes of a model on data by name, or on tasks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fas.data.for_model import default_data, is_classifier
from fas.evaluation.kept import Kept
from fas.evaluation.score import Scores, measure, on_pictures, on_table, scores_on
from fas.loading import Loaded, loaded_of
from fas.memory import with_fewer_rows
from fas.types import Measurement, Network, Progress, Schedule

_SETTINGS = ("network", "schedule", "timesteps", "levels")


def evaluate(
    model: Any,
    data: str | Path | None = None,
    *,
    tokenizer: Any = None,
    tasks: Sequence[str] = (),
    network: Network | None = None,
    timesteps: int | Sequence[int] | None = None,
    schedule: Schedule | None = None,
    split: str = "test",
    tokens: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    task_path: Path | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    images: Path | None = None,
    prompt: str = "",
    max_new_tokens: int = 32,
    batch_size: int = 8,
    device: str = "cpu",
    kept: Kept | None = None,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Measure perplexity (strided window), the scores of a classifier on a table, tasks by name, or captions.

    The model is left as it was set.

    Args:
        model: a name (directory, hub, ``embedded``), what ``fas.load`` returns, or a transformers model.
        data: text source; GLUE-style table for a classifier; rows of images and captions, or of images and questions,
            for a model that reads images. The embedded model brings its own.
        tokenizer: of a transformers model; that of the directory or name it was loaded from if None.
        tasks: names, of lm-evaluation-harness or, for a classifier, of GLUE; in place of ``data``.
        network: ``ann``, ``quantised`` or ``snn``; the last of a converted model if None.
        timesteps: one T or several, at thresholds as they were calibrated; the model's if None.
        schedule: ``layerwise`` or ``online``; the model's if None.
        split: part of a data set that has parts.
        tokens: use the first tokens only.
        window: tokens per window; the model's context if None.
        stride: new tokens per window; half a window if None.
        task_path: folder with the data of tasks, or YAML files of them.
        limit: rows per task, or pictures, from the first.
        fewshot: examples in the prompt of a task; the task's own if None.
        images: folder of the pictures, where it is not that of their rows.
        prompt: said in front of a caption; ``{}`` is the question.
        max_new_tokens: of a caption or answer.
        batch_size: windows or rows per call; half as many where memory is not enough.
        device: where a model is put that is loaded by name.
        kept: keeps what is measured, for a run that is killed (``fas.evaluation.kept``).
        progress: called with what is measured, batches or rows done and in all.

    Returns:
        Rows with all their conditions; ``spikes_per_neuron`` after the scores of a spiking network.

    Raises:
        CheckpointError: settings of the spiking network for a dense model.
        DataError: data or tasks that cannot be read.
        ValueError: arguments that do not go together.

    Example:
        >>> rows = fas.evaluate("gpt2-snn", "wikitext", timesteps=[4, 8])  # doctest: +SKIP
        >>> [(row.quantity, row.conditions["timesteps"], row.value) for row in rows]  # doctest: +SKIP
        [('perplexity', 4, 31.2), ('spikes_per_neuron', 4, 1.9), ('perplexity', 8, 30.1), ('spikes_per_neuron', 8, 3.2)]
    """
    loaded = loaded_of(model, tokenizer, device)
    if network in ("quantised", "snn") or timesteps is not None or schedule is not None:
        loaded.need_converted()
    scores: Scores | None = None
    source = None if data is None else str(data)
    if not tasks and loaded.processor is not None:
        scores = on_pictures(
            loaded, default_data(loaded, source, held_out=True), images=images, split=split, limit=limit, prompt=prompt,
            max_new_tokens=max_new_tokens, batch_size=batch_size,
        )  # fmt: skip
    elif images is not None or prompt or (limit is not None and not tasks):
        raise ValueError(
            f"a folder of images, a prompt, and a limit without tasks are for models that read images and text; "
            f"{loaded.name} is not one, or has no processor in its directory"
        )
    elif not tasks:
        scores = scores_on(
            loaded, default_data(loaded, source, held_out=True), split=split, limit=tokens, window=window,
            stride=stride, batch_size=batch_size,
        )  # fmt: skip
    found: list[Measurement] = []
    steps = [timesteps] if timesteps is None or isinstance(timesteps, int) else timesteps
    with _as_before(loaded):
        for step in steps:
            if loaded.converted:
                loaded.model.network = network or "snn"
                loaded.model.schedule = schedule or loaded.model.schedule
                if step is not None:
                    loaded.set(step)
            parts = {"": partial(measure, loaded, scores, kept=kept, progress=progress)} if scores is not None else {}
            for task in tasks:
                parts[task] = partial(_score_task, loaded, task, task_path, limit, fewshot, batch_size, kept, progress)
            for name, run in parts.items():
                found += run() if kept is None else kept.part(f"{name} {loaded.conditions}", run)
    return found


@contextmanager
def _as_before(loaded: Loaded) -> Iterator[None]:
    """Put back the settings of a converted model when the block ends."""
    before = {name: getattr(loaded.model, name) for name in _SETTINGS} if loaded.converted else {}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(loaded.model, name, value)


def _score_task(
    loaded: Loaded, task: str, task_path: Path | None, limit: int | None, fewshot: int | None, batch_size: int,
    kept: Kept | None, progress: Progress | None,
) -> list[Measurement]:  # fmt: skip
    """Score a model, set to the network that is meant, on one task of the harness or of GLUE, and count its spikes."""
    if is_classifier(loaded):
        from fas.evaluation.glue import GLUE, HUB, glue_table

        if fewshot is not None:
            raise ValueError(f"few-shot examples stand in a prompt, and {loaded.name} is a classifier: leave them out")
        scores = on_table(task, glue_table(task, task_path, limit), batch_size)
        rows = measure(loaded, scores, kept=kept, progress=progress, source=str(task_path or HUB))
        return [row for row in rows if row.quantity in (*GLUE[task].metrics, "spikes_per_neuron")]
    with _quiet_harness():
        from fas.evaluation.harness import SpikingLM, Stretches, score
        from fas.evaluation.local_tasks import local_names

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
    about, local = loaded.conditions, () if task_path is None else local_names(task_path)
    sources = [str(task_path) if row.conditions["data"] in local else "lm-evaluation-harness" for row in found]
    return [
        replace(row, conditions={**about, **row.conditions, "source": source})
        for row, source in zip(found, sources, strict=True)
    ]


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """Keep what the harness logs about every default to itself, errors apart."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
