"""``fas convert``: a pretrained model becomes a spiking one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fas.cli.program.calibrating import report_conversion
from fas.cli.program.method_options import method_options
from fas.cli.program.options import BatchSize, Device, GGUFFile, Json, Model, Overwrite, Seed, Tokens, Window
from fas.cli.program.output import Output
from fas.data.for_model import Sample
from fas.words import bytes_of, size, span


@method_options
def convert(
    context: typer.Context,
    model: Model,
    out: Annotated[Path, typer.Argument(help="Directory to write.")],
    options: dict[str, Any],
    data: Annotated[
        str | None,
        typer.Option("--data", "--calibration", help="To calibrate on: text file, jsonl/tsv, directory, hub data set."),
    ] = None,
    calibrate: Annotated[bool, typer.Option(help="Set thresholds now; otherwise run `fas calibrate` later.")] = True,
    method: Annotated[str, typer.Option(help="Recipe: the name of a file in fas.methods.")] = "fas",
    tokens: Tokens = 4096,
    window: Window = None,
    batch_size: BatchSize = 16,
    gguf_file: GGUFFile = None,
    device: Device = "cpu",
    seed: Seed = 0,
    stream: Annotated[
        bool | None,
        typer.Option(help="Keep one block in memory at a time; the default where the weights would not fit."),
    ] = None,
    activation_budget: Annotated[str, typer.Option(help="Hidden states held in memory when streaming.")] = "2GiB",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn a pretrained transformer into a spiking network and calibrate it.

    The model keeps its class and weights: `AutoModelFor….from_pretrained(OUT)` reads it after `import fas`.

    Example: `fas convert gpt2 gpt2-snn --data wikitext`
    """
    with Output.opened(context, as_json) as output:
        from fas.config import build_method
        from fas.conversion import calibrate_on
        from fas.conversion import convert as convert_model
        from fas.loading import load
        from fas.saving import check_place, check_room, save, unfinished
        from fas.streaming import is_large

        model = model if gguf_file is None else f"{model}/{gguf_file}"
        check_place(out, overwrite=overwrite)
        recipe = build_method(method, options)
        budget, sample = bytes_of(activation_budget), Sample(tokens, window, batch_size, seed)
        if stream or (stream is None and calibrate and device == "cpu" and is_large(model)):
            if not calibrate or device != "cpu":
                raise ValueError("--stream calibrates block by block on the CPU: leave out --no-calibrate and --device")
            _stream(output, model, out, recipe, data, sample, budget)
            return
        loaded = load(model, device)
        if loaded.converted:
            raise ValueError(f"{model} is converted already: calibrate it again with fas calibrate {model} {out}")
        check_room(out, loaded.model)
        convert_model(loaded.model, recipe)
        if calibrate:
            with output.progress("calibrating") as progress:
                calibrate_on(loaded, data, sample, keep=unfinished(out), progress=progress)
        save(loaded, out)
        about = {**loaded.conditions, "data": data or loaded.data} if calibrate else loaded.conditions
        report_conversion(output, loaded.model.fas_config, about, out, loaded.model)


def _stream(output: Output, model: str, out: Path, recipe: Any, data: str | None, sample: Sample, budget: int) -> None:
    """Convert and calibrate a directory into another; say after each block what it took and what is to come."""
    from fas.calibration.figures import in_words
    from fas.calibration.residence import Finished
    from fas.config import FASConfig
    from fas.memory import peak_resident
    from fas.storage.directory import read_config
    from fas.streaming import stream

    blocks: list[Finished] = []

    def told(block: Finished) -> None:
        blocks.append(block)
        output.remark(
            f"{block.path} ({block.done} of {block.total}): {in_words(block.figures)}; {block.seconds:.1f} s, about "
            f"{span(block.remaining)} left, peak memory {size(block.peak)}"
        )

    with output.progress("streaming") as progress:
        stream(model, out, recipe, calibration=data, sample=sample, budget=budget, told=told, progress=progress)
    config = FASConfig(**read_config(out)["quantization_config"])
    about = {"model": model, "network": "snn", "timesteps": recipe.timesteps, "coverage": recipe.coverage}
    about["data"] = data or config.data
    report_conversion(output, config, about, out)
    for block in blocks:
        output.measure("stream.block_seconds", block.seconds, "s", block=block.path, **about)
    output.measure("stream.peak_resident", peak_resident(), "B", **about)
