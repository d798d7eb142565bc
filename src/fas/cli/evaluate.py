"""``fas evaluate``: perplexity, scores of a classifier, tasks by name, captions and answers; spikes beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fas
from fas.cli.program.options import BatchSize, Device, Json, Model, whole_numbers, words
from fas.cli.program.output import Output, read_rows
from fas.types import Network, Schedule


def evaluate(
    context: typer.Context,
    model: Model,
    data: Annotated[
        str | None,
        typer.Option(help="Text source; a GLUE-style tsv/json/csv with labels; for a model that reads images, jsonl."),
    ] = None,
    timesteps: Annotated[
        str | None,
        typer.Option(help="One T or several, such as 2,4,8, without calibrating again; the model's if not given."),
    ] = None,
    network: Annotated[
        Network | None, typer.Option(help="Which of the three networks of a converted model; snn if not given.")
    ] = None,
    schedule: Annotated[Schedule | None, typer.Option(help="The model's if not given.")] = None,
    window: Annotated[int | None, typer.Option(help="Tokens per window; by default the context.", min=2)] = None,
    stride: Annotated[int | None, typer.Option(help="New tokens per window; by default half of it.", min=1)] = None,
    split: Annotated[str, typer.Option(help="Part of a data set that has parts.")] = "test",
    test_tokens: Annotated[
        int | None, typer.Option(help="Tokens to measure on, from the first; all if not given.", min=2)
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks of lm-evaluation-harness, such as lambada_openai,piqa; of GLUE for a classifier."),
    ] = None,
    task_path: Annotated[
        Path | None, typer.Option(help="Folder with their data (NAME.jsonl; GLUE as its archive) or YAML task files.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Rows per task, or pictures, from the first.", min=1)] = None,
    fewshot: Annotated[int | None, typer.Option(help="Examples in the prompt; the task's own if not given.", min=0)] = (
        None
    ),
    image_folder: Annotated[
        Path | None, typer.Option(help="Folder of the images; that of --data if not given.")
    ] = None,
    caption_prompt: Annotated[
        str, typer.Option(help="Text before a caption; {} stands for the question, where rows have one.")
    ] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of a caption or answer.", min=1)] = 32,
    card: Annotated[
        bool, typer.Option("--card", help="Write the figures into the model card (README.md) of MODEL.")
    ] = False,
    results: Annotated[
        list[Path] | None,
        typer.Option(help="With --card: rows that other commands printed with --json, to add to the card; repeatable."),
    ] = None,
    batch_size: BatchSize = 8,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure perplexity (strided window), the scores of a classifier on a table, tasks by name, or captions.

    Tasks run in lm-evaluation-harness (`pip install 'fas[eval]'`), for classifiers on GLUE. Data that `--task-path`
    lacks comes from the hub. Thresholds belong to the T they were calibrated for: another T runs, but less well than
    after `fas calibrate --timesteps`. Run an interrupted command again, and it resumes.

    A model that reads images writes captions (rows of `image` and `captions`: CIDEr, BLEU, exact match) or answers
    (rows of `image`, `question` and `answers`: exact match), which needs `pip install 'fas[vision]'`.

    `--card` keeps the figures in config.json and writes the model card again; calibration or training drops them.

    Example: `fas evaluate gpt2-snn --data wikitext --timesteps 4,8`

    Example: `fas evaluate git-snn --data captions.jsonl --timesteps 8`

    Example: `fas evaluate gpt2-snn --tasks lambada_openai,piqa,arc_easy --limit 500 --card`
    """
    named = words(tasks) if tasks else []
    if tasks is not None and not named:
        raise typer.BadParameter("names no task", param_hint="--tasks")
    if named and data is not None:
        raise typer.BadParameter("--tasks brings its own data: leave out --data, or name a folder with --task-path")
    if not named and (task_path or fewshot is not None):
        raise typer.BadParameter("--task-path and --fewshot need --tasks")
    if results and not card:
        raise typer.BadParameter("is for the model card: add --card", param_hint="--results")
    steps = whole_numbers(timesteps, "--timesteps") if timesteps else None
    with Output.opened(context, as_json) as output:
        if card and not Path(model).is_dir():
            raise ValueError(f"--card writes into a directory, and {model} is not one: name the directory of the model")
        others = [row for file in results or () for row in read_rows(file, finite=True)]
        kept = output.keep(model, data, task_path, image_folder)
        with output.progress("evaluating") as progress:
            found = fas.evaluate(
                model, data, tasks=named, network=network, timesteps=steps, schedule=schedule, split=split,
                tokens=test_tokens, window=window, stride=stride, task_path=task_path, limit=limit, fewshot=fewshot,
                images=image_folder, prompt=caption_prompt, max_new_tokens=max_new_tokens, batch_size=batch_size,
                device=device, kept=kept, progress=progress,
            )  # fmt: skip
        output.add(*found)
        names = ("network", "timesteps", "levels", "data")
        cells = [
            [*(row.conditions.get(name) for name in names), row.quantity, row.value, row.conditions.get("stderr")]
            for row in found
        ]
        output.table(model, ["network", "T", "levels", "data", "quantity", "value", "± stderr"], cells)
        if card:
            fas.write_card(model, [*output.measurements, *others])
            output.remark(f"written to {Path(model) / 'README.md'}; upload all: hf upload NAME {model}")
