"""Tasks by name: lm-evaluation-harness for models that write text, GLUE for classifiers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fas.cli._calibration import conditions
from fas.cli._parts import Parts, Rows
from fas.cli._rows_at_a_time import with_fewer
from fas.cli.program.output import Output
from fas.data.for_model import is_classifier, row_length
from fas.loading import Loaded

if TYPE_CHECKING:
    from fas.evaluation.harness import Score
    from fas.recording import Recording

COLUMNS = ["network", "T", "levels", "task", "quantity", "value", "± stderr", "spikes per neuron"]


def score_tasks(
    output: Output,
    loaded: Loaded,
    tasks: Sequence[str],
    *,
    task_path: Path | None,
    limit: int | None,
    fewshot: int | None,
    batch_size: int,
    parts: Parts,
) -> Rows:
    """Score a model, set to the network that is meant, on tasks; return rows of a table.

    Raises:
        DataError: a task that there is not, or data that make none.
        ValueError: few-shot prompts asked of a classifier.
    """
    if is_classifier(loaded):
        if fewshot is not None:
            raise ValueError(f"--fewshot puts examples into a prompt, and {loaded.name} is a classifier: leave it out")

        def classified(task: str) -> Rows:
            return _glue(output, loaded, task, task_path, limit=limit, batch_size=batch_size, parts=parts)

        return [row for task in tasks for row in parts.run(_part(loaded, task), partial(classified, task))]
    with _quiet_harness():
        from fas.evaluation.harness import SpikingLM, Stretches, score

        lm = _backend(loaded, batch_size, SpikingLM, Stretches)
        spiking = loaded.converted and loaded.model.network == "snn"

        def measure(task: str) -> Rows:
            rows = []
            lm.once = parts.within(_part(loaded, task), lambda: lm.recording if spiking else None)

            def scored(batch_size: int) -> list[Score]:
                lm.batch_size_per_gpu = batch_size
                return score(lm, task, task_path=task_path, limit=limit, fewshot=fewshot)

            found = with_fewer(output, lm.batch_size_per_gpu, scored)
            about = conditions(loaded)
            for one in found:
                output.measure(
                    one.metric, one.value, "1", **about, data=one.task, samples=one.samples, fewshot=one.fewshot,
                    stderr=one.stderr, task_version=one.version, source=_source(one.task, task_path),
                )  # fmt: skip
                rows.append(_row(about, one.task, one.metric, one.value, one.stderr, one.spikes))
            if found and found[0].spikes is not None:
                output.measure("spikes_per_neuron", found[0].spikes, "spikes/window", **about, data=task)
            return rows

        table: Rows = []
        for done, task in enumerate(tasks):
            output.remark(f"{done + 1} of {len(tasks)}: {task}")
            table += parts.run(_part(loaded, task), partial(measure, task))
    return table


def _part(loaded: Loaded, task: str) -> str:
    """Return the name of a part: a task and how the model is set."""
    return f"{task} {conditions(loaded)}"


def _backend(loaded: Loaded, batch_size: int, spiking: Callable[..., Any], dense: Callable[..., Any]) -> Any:
    options = {"pretrained": loaded.model, "tokenizer": loaded.need_tokenizer(), "batch_size": batch_size}
    if loaded.converted:
        return spiking(**options, network=loaded.model.network)
    return dense(**options, device=str(loaded.model.device))


def _glue(
    output: Output, loaded: Loaded, task: str, folder: Path | None, *, limit: int | None, batch_size: int, parts: Parts
) -> Rows:
    import fas
    from fas.evaluation.classify import classify
    from fas.evaluation.glue import HUB, glue_scores, glue_table

    table = glue_table(task, folder, limit)
    spiking = loaded.converted and loaded.model.network == "snn"

    def scored(batch_size: int) -> tuple[dict[str, float], Recording | None]:
        recording = fas.record(loaded.model) if spiking else contextlib.nullcontext()
        with recording as spikes, output.progress(task) as advance:
            once = parts.within(_part(loaded, task), lambda: spikes)
            found = classify(
                loaded.model, table, loaded.need_tokenizer(), batch_size=batch_size, max_length=row_length(loaded),
                progress=advance, once=once,
            )  # fmt: skip
        return found, spikes

    found, spikes = with_fewer(output, batch_size, scored)
    about = conditions(loaded)
    stated = {**about, "data": task, "source": HUB if folder is None else str(folder), "samples": len(table)}
    fired = None if spikes is None else spikes.spikes_per_neuron
    rows = []
    for name, value in glue_scores(task, found).items():
        output.measure(name, value, "1", **stated)
        rows.append(_row(about, task, name, value, None, fired))
    if fired is not None:
        output.measure("spikes_per_neuron", fired, "spikes/window", **stated)
    return rows


def _row(
    about: dict[str, Any], task: str, metric: str, value: float, stderr: float | None, spikes: float | None
) -> list[Any]:
    return [about["network"], about.get("timesteps"), about.get("levels"), task, metric, float(value), stderr, spikes]


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
