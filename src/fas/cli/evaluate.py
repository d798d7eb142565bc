"""``fas evaluate``: perplexity, scores of a classifier, tasks by name, captions and answers; spikes beside them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fas.cli._calibration import conditions
from fas.cli._parts import Parts, Rows
from fas.cli._tasks import COLUMNS, score_tasks
from fas.cli.program.options import BatchSize, Device, Json, Model, whole_numbers, words
from fas.cli.program.output import Output
from fas.data.for_model import default_data
from fas.evaluation.score import Scores, measure
from fas.loading import Loaded
from fas.types import Network, Schedule


def evaluate(
    context: typer.Context,
    model: Model,
    data: Annotated[
        str | None,
        typer.Option(help="Text source; a GLUE-style tsv/json/csv with labels; for a model that reads images, jsonl."),
    ] = None,
    timesteps: Annotated[str | None, typer.Option(help="One T or several, as 2,4,8; the model's if not given.")] = None,
    network: Annotated[
        Network | None, typer.Option(help="Which of the three networks of a converted model; snn if not given.")
    ] = None,
    schedule: Annotated[Schedule | None, typer.Option(help="The model's if not given.")] = None,
    window: Annotated[int | None, typer.Option(help="Tokens per window; the model's context.", min=2)] = None,
    stride: Annotated[int | None, typer.Option(help="New tokens per window; half a window.", min=1)] = None,
    split: Annotated[str, typer.Option(help="Part of a data set that has parts.")] = "test",
    limit_tokens: Annotated[int | None, typer.Option(help="Use the first tokens only.", min=2)] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks of lm-evaluation-harness, as lambada_openai,piqa; of GLUE for a classifier."),
    ] = None,
    task_path: Annotated[
        Path | None, typer.Option(help="Folder with their data (NAME.jsonl; GLUE as its archive) or YAML task files.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Rows per task, or pictures, from the first.", min=1)] = None,
    fewshot: Annotated[int | None, typer.Option(help="Examples in the prompt; the task's own if not given.", min=0)] = (
        None
    ),
    images: Annotated[Path | None, typer.Option(help="Folder of the images; that of --data if not given.")] = None,
    prompt: Annotated[str, typer.Option(help="Said to a model in front of a caption; {} is the question.")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of a caption or answer at most.", min=1)] = 32,
    batch_size: BatchSize = 8,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure perplexity (strided window), the scores of a classifier on a table, tasks by name, or captions.

    Tasks run in lm-evaluation-harness (`pip install 'fas[eval]'`), for classifiers on GLUE; what `--task-path` does
    not hold comes from the hub. Thresholds belong to the T they were calibrated at: another T runs, but less well
    than after `fas calibrate --timesteps`.

    A model that reads images writes captions (rows of `image` and `captions`: CIDEr, BLEU, exact match) or answers
    (rows of `image`, `question` and `answers`: exact match), which needs `pip install 'fas[vision]'`.

    Example: `fas evaluate gpt2-snn --data wikitext --timesteps 4,8`

    Example: `fas evaluate git-snn --data captions.jsonl --timesteps 8`

    Example: `fas evaluate gpt2-snn --tasks lambada_openai,piqa,arc_easy --limit 500`
    """
    steps = whole_numbers(timesteps, "--timesteps") if timesteps else [None]
    named = words(tasks) if tasks else []
    if tasks is not None and not named:
        raise typer.BadParameter("names no task", param_hint="--tasks")
    if named and data is not None:
        raise typer.BadParameter("--tasks bring their own data: leave out --data, or name a folder with --task-path")
    if not named and (task_path or fewshot is not None):
        raise typer.BadParameter("--task-path and --fewshot belong to --tasks, which is missing")
    with Output.opened(context, as_json) as output:
        from fas.loading import load

        loaded = load(model, device)
        if network in ("quantised", "snn") or timesteps is not None or schedule is not None:
            loaded.need_converted()
        rows: Rows = []
        scores: Scores | None = None
        if not named and loaded.processor is not None:
            from fas.cli._pictures import PictureScores

            scores = PictureScores(
                loaded, default_data(loaded, data), images=images, split=split, limit=limit, prompt=prompt,
                max_new_tokens=max_new_tokens, batch_size=batch_size,
            )  # fmt: skip
        elif images is not None or prompt or (limit is not None and not named):
            raise ValueError(
                f"--images, --prompt and --limit without --tasks are for models that read images and text; {model} "
                "is none, or has no processor in its directory"
            )
        elif not named:
            scores = Scores(
                loaded, default_data(loaded, data), split=split, limit=limit_tokens, window=window, stride=stride,
                batch_size=batch_size,
            )  # fmt: skip
        parts = Parts(output, model, data, task_path, images)
        for timestep in steps:
            if loaded.converted:
                loaded.model.network = network or "snn"
                if timestep is not None:
                    loaded.set_timesteps(timestep)
                if schedule is not None:
                    loaded.model.schedule = schedule
            if scores is None:
                rows += score_tasks(
                    output,
                    loaded,
                    named,
                    task_path=task_path,
                    limit=limit,
                    fewshot=fewshot,
                    batch_size=batch_size,
                    parts=parts,
                )
                continue
            about = conditions(loaded)
            rows += parts.run(f"{about}", partial(_measured, output, loaded, scores, about, parts))
        if scores is None:
            output.table(f"{model}, {len(named)} tasks" if len(named) > 1 else f"{model}, {named[0]}", COLUMNS, rows)
        else:
            output.table(f"{model} on {scores.source}", ["network", "T", "levels", "quantity", "value"], rows)
    parts.close()


def _measured(output: Output, loaded: Loaded, scores: Scores, about: dict[str, Any], parts: Parts) -> Rows:
    """Measure one setting of a model; return rows of the table."""
    found, spikes = measure(output, loaded, scores, parts)
    shown = found if spikes is None else {**found, "spikes_per_neuron": spikes}
    return [
        [about["network"], about.get("timesteps"), about.get("levels"), name, float(value)]
        for name, value in shown.items()
    ]
