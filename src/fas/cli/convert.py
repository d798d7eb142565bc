"""``fas convert``: a pretrained model becomes a spiking one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fas.cli.program.calibrating import calibrate_and_report
from fas.cli.program.method_options import method_options
from fas.cli.program.options import BatchSize, Device, GGUFFile, Json, Model, Seed, Tokens, Window
from fas.cli.program.output import Output


@method_options
def convert(
    context: typer.Context,
    model: Model,
    out: Annotated[Path, typer.Argument(help="Directory to write; a converted model there is replaced.")],
    options: dict[str, Any],
    data: Annotated[
        str | None,
        typer.Option("--data", "--calibration", help="Text file, jsonl/tsv, directory or hub data set."),
    ] = None,
    calibrate: Annotated[bool, typer.Option(help="Set thresholds now; without, run `fas calibrate` later.")] = True,
    method: Annotated[str, typer.Option(help="Recipe, a file of fas.methods.")] = "fas",
    tokens: Tokens = 65536,
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
    as_json: Json = False,
) -> None:
    """Turn a pretrained transformer into a spiking network and calibrate it.

    The model keeps its class and weights: `AutoModelFor….from_pretrained(OUT)` reads it after `import fas`.

    Example: `fas convert gpt2 gpt2-snn --data wikitext --timesteps 8 --coverage linear`
    """
    with Output.opened(context, as_json) as output:
        from fas.cli._streaming import is_large, size, stream_and_report
        from fas.config import build_method
        from fas.conversion import convert as convert_model
        from fas.loading import load
        from fas.saving import check_place, check_room, save, unfinished

        model = model if gguf_file is None else f"{model}/{gguf_file}"
        check_place(out)
        recipe = build_method(method, options)
        budget = size(activation_budget)
        if stream or (stream is None and calibrate and device == "cpu" and is_large(model)):
            if not calibrate or device != "cpu":
                raise ValueError("--stream calibrates block by block on the CPU: leave out --no-calibrate and --device")
            stream_and_report(
                output, model, out, recipe, data, tokens=tokens, window=window, batch_size=batch_size, seed=seed,
                budget=budget,
            )  # fmt: skip
            return
        loaded = load(model, device)
        if loaded.converted:
            raise ValueError(f"{model} is converted already: calibrate it again with fas calibrate {model} {out}")
        check_room(out, loaded.model)
        convert_model(loaded.model, recipe)
        if calibrate:
            calibrate_and_report(
                output, loaded, data, tokens=tokens, window=window, batch_size=batch_size, seed=seed,
                keep=unfinished(out),
            )  # fmt: skip
        save(loaded, out)
        output.remark(f"written to {out}: {len(loaded.model.sites)} sites, T = {loaded.model.timesteps}")
