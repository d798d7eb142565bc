"""Converting a checkpoint that does not fit into memory, block by block."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import typer

from fas.cli.program.calibrating import report_records
from fas.cli.program.output import Output
from fas.errors import CheckpointError
from fas.loading import Loaded, location

_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
# Share of the machine's memory that weights may fill and still leave room for what calibration records.
_ROOM = 0.7


def size(text: str) -> int:
    """Return the bytes of a size such as ``2GiB`` or ``512MiB``.

    Raises:
        typer.BadParameter: not such a size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KiB|MiB|GiB)", text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no size such as 512MiB or 2GiB", param_hint="--activation-budget")
    return int(float(found[1]) * _UNITS[found[2]])


def is_large(model: str) -> bool:
    """Whether the safetensors of a directory would fill most of this machine's memory."""
    place = Path(location(model).name)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return sum(file.stat().st_size for file in place.glob("*.safetensors")) > _ROOM * memory


def stream_and_report(
    output: Output,
    model: str,
    out: Path,
    recipe: Any,
    data: str | None,
    *,
    tokens: int,
    window: int | None,
    batch_size: int,
    seed: int,
    budget: int,
) -> None:
    """Convert and calibrate a directory into another; say after each block what it took and what is to come.

    Raises:
        CheckpointError: a model that is no directory.
    """
    from fas.calibration.residence import Finished
    from fas.data.for_model import Sample, default_data, is_classifier, training_rows
    from fas.data.text import batches
    from fas.loading import tokenizer_of
    from fas.memory import peak_resident
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
    rows = training_rows(loaded, source, Sample(tokens, window, batch_size, seed))
    about = {
        "model": model, "network": "snn", "timesteps": recipe.timesteps, "coverage": recipe.coverage, "data": source,
    }  # fmt: skip

    def told(block: Finished) -> None:
        output.measure("stream.block_seconds", block.seconds, "s", block=block.path, **about)
        output.remark(
            f"{block.path} ({block.done} of {block.total}): {block.seconds:.1f} s, about {_span(block.remaining)} to "
            f"come, peak memory {block.peak / 2**30:.2f} GiB"
        )

    with output.progress("streaming") as progress:
        records = stream(
            place, out, recipe, calibration=batches(rows, batch_size), tokenizer=loaded.tokenizer, budget=budget,
            told=told, progress=progress,
        )  # fmt: skip
    output.measure("stream.peak_resident", peak_resident(), "B", **about)
    report_records(output, records, about)
    output.remark(f"written to {out}: T = {recipe.timesteps}")


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
