"""``fas convert``: a pretrained model becomes a spiking one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from fas.cli.program.calibrating import report_records, report_summary
from fas.cli.program.method_options import method_options
from fas.cli.program.options import BatchSize, Device, GGUFFile, Json, Model, Overwrite, Seed, Tokens, Window
from fas.cli.program.output import Output
from fas.data.for_model import Sample
from fas.errors import CheckpointError
from fas.words import bytes_of, size, span

# Share of the machine's memory that weights may fill and still leave room for what calibration records.
_ROOM = 0.7


def is_large(model: str) -> bool:
    """Whether the safetensors of a directory would fill most of this machine's memory."""
    from fas.loading import location

    place = Path(location(model).name)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return sum(file.stat().st_size for file in place.glob("*.safetensors")) > _ROOM * memory


@method_options
def convert(
    context: typer.Context,
    model: Model,
    out: Annotated[Path, typer.Argument(help="Directory to write.")],
    options: dict[str, Any],
    data: Annotated[
        str | None,
        typer.Option("--data", "--calibration", help="Text file, jsonl/tsv, directory or hub data set."),
    ] = None,
    calibrate: Annotated[bool, typer.Option(help="Set thresholds now; without, run `fas calibrate` later.")] = True,
    method: Annotated[str, typer.Option(help="Recipe, a file of fas.methods.")] = "fas",
    tokens: Tokens = 4096,
    window: Window = None,
    batch_size: BatchSize = 16,
    gguf_file: GGUFFile = None,
    device: Device = "cpu",
    seed: Seed = 0,
    stream: Annotated[
        bool | None,
        typer.Option(help="Keep one block in memory at a time; by itself where the weights would fill the memory."),
    ] = None,
    activation_budget: Annotated[str, typer.Option(help="Hidden states held in memory when streaming.")] = "2GiB",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn a pretrained transformer into a spiking network and calibrate it.

    The model keeps its class and weights: `AutoModelFor….from_pretrained(OUT)` reads it after `import fas`.

    Example: `fas convert gpt2 gpt2-snn --data wikitext --timesteps 8 --coverage linear`
    """
    with Output.opened(context, as_json) as output:
        from fas.config import build_method
        from fas.conversion import calibrate_on
        from fas.conversion import convert as convert_model
        from fas.data.for_model import default_data
        from fas.loading import load
        from fas.saving import check_place, check_room, save, unfinished

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
        source = default_data(loaded, data) if calibrate else None
        if source is not None:
            with output.progress("calibrating") as progress:
                calibrate_on(loaded, source, sample, keep=unfinished(out), progress=progress, told=output.remark)
        about = loaded.conditions if source is None else {**loaded.conditions, "data": source}
        report_records(output, loaded.model.records, about, loaded.model.fas_config.left_dense)
        save(loaded, out)
        report_summary(output, loaded, loaded.model.fas_config, out)


def _stream(output: Output, model: str, out: Path, recipe: Any, data: str | None, sample: Sample, budget: int) -> None:
    """Convert and calibrate a directory into another; say after each block what it took and what is to come."""
    from fas.calibration.figures import in_words
    from fas.calibration.needs import estimate_conversion
    from fas.calibration.residence import Finished
    from fas.config import FASConfig
    from fas.data.for_model import default_data, is_classifier, training_rows
    from fas.data.text import batches
    from fas.loading import Loaded, location, tokenizer_of
    from fas.memory import peak_resident
    from fas.storage.directory import read_config
    from fas.storage.sharded import Sharded
    from fas.streaming import stream

    found = location(model)
    place = Path(found.name)
    if found.gguf_file is not None or not place.is_dir():
        raise CheckpointError(f"{model} is not a directory of safetensors, which streaming reads: download the model")
    loaded = Loaded(model, Sharded(place).model, tokenizer_of(found))
    if is_classifier(loaded):
        raise CheckpointError(f"{model} labels sentences, which streaming has no data for: leave out --stream")
    source = default_data(loaded, data)
    rows = training_rows(loaded, source, sample)
    about = {
        "model": model, "network": "snn", "timesteps": recipe.timesteps, "coverage": recipe.coverage, "data": source,
    }  # fmt: skip

    def told(block: Finished) -> None:
        output.measure("stream.block_seconds", block.seconds, "s", block=block.path, **about)
        output.remark(
            f"{block.path} ({block.done} of {block.total}): {in_words(block.figures)}; {block.seconds:.1f} s, about "
            f"{span(block.remaining)} left, peak memory {size(block.peak)}"
        )

    tokens = rows.numel()
    needs = estimate_conversion(loaded.model, tokens, recipe, streamed=True, budget=budget)
    output.remark(f"streaming takes {needs}")
    with output.progress("streaming") as progress:
        records = stream(
            place, out, recipe, calibration=batches(rows, sample.batch_size), tokenizer=loaded.tokenizer, budget=budget,
            told=told, progress=progress,
        )  # fmt: skip
    output.measure("stream.peak_resident", peak_resident(), "B", **about)
    report_records(output, records, about)
    report_summary(output, loaded, FASConfig(**read_config(out)["quantization_config"]), out)
