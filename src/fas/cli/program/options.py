"""Options that several commands share, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fas.types import Schedule

Model = Annotated[str, typer.Argument(help="A directory, GGUF file or hub name; `embedded`: the model in the package.")]
GGUFFile = Annotated[
    str | None, typer.Option("--gguf-file", help="Which GGUF file of the directory or hub name MODEL to read.")
]
Json = Annotated[bool, typer.Option("--json", help="Print rows of measurements as a JSON list, nothing else.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing converted model.")]
Seed = Annotated[int, typer.Option(help="Random seed.", min=0)]
Device = Annotated[str, typer.Option(help="Where to compute, as torch names it: `cpu`, `cuda`, `cuda:1`.")]
Tokens = Annotated[int, typer.Option(help="Tokens to calibrate on.", min=1)]
Data = Annotated[str | None, typer.Option(help="Text source, or GLUE-style table, to calibrate on.")]
TestData = Annotated[str | None, typer.Option(help="What to measure on; the test part of the data if not given.")]
TestTokens = Annotated[int, typer.Option(help="Tokens to measure on, from the start of the text.", min=2)]
Window = Annotated[
    int | None,
    typer.Option(help="Tokens per window; by default the model's context, at most 512.", min=1),
]
Builder = Annotated[
    Path | None,
    typer.Option(
        help="Python file that builds a plain network: load_network(MODEL) returns it. It runs that file. Data: images."
    ),
]
SpikingNetwork = Annotated[Path | None, typer.Option(help="Directory of the converted plain network.")]
MeasuredTokens = Annotated[int, typer.Option("--test-tokens", help="Tokens to measure on.", min=1)]
MeasuredImages = Annotated[
    int, typer.Option("--test-images", help="Images to measure on, equally many of every class.", min=1)
]
OwnTimesteps = Annotated[
    int | None, typer.Option(help="T; the model's if not given, which its thresholds were calibrated for.", min=1)
]
OwnSchedule = Annotated[Schedule | None, typer.Option(help="The model's if not given.")]
BatchSize = Annotated[int, typer.Option(help="Windows or rows per call of the model.", min=1)]


def whole_numbers(text: str, option: str) -> list[int]:
    """Return the numbers of a comma-separated list such as ``2,4,8``.

    Raises:
        typer.BadParameter: not such a list.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers such as 2,4,8", param_hint=option) from None


def words(text: str) -> list[str]:
    """Return the parts of a comma-separated list."""
    return [part.strip() for part in text.split(",") if part.strip()]
