"""``fas card``: the model card of a converted directory, with the figures that were measured of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fas.cli.program.output import Output, read_rows
from fas.types import Measurement


def card(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(help="Of a converted model.")],
    figures: Annotated[
        list[Path] | None, typer.Argument(help="What `--json` of evaluate, energy and others has printed, as files.")
    ] = None,
) -> None:
    """Write the model card (README.md) of a converted model: what it is, what was measured, how to load it.

    Figures are kept in config.json; later saves and uploads state them until the model is calibrated or trained
    again. Without files the card is written anew with the figures it has.

    Example: `fas evaluate gpt2-snn --data wikitext --json > quality.json; fas card gpt2-snn quality.json`
    """
    with Output.opened(context, False) as output:
        from fas.storage.card import write_card

        rows = [row for file in figures or () for row in _rows(file)]
        written = write_card(directory, rows if figures else None)
        output.text(written.read_text(encoding="utf-8"))
        output.remark(f"written to {written}; upload all: hf upload NAME {directory}")


def _rows(file: Path) -> list[Measurement]:
    from fas.errors import DataError

    rows = read_rows(file)
    if not all(isinstance(row.value, int | float) for row in rows):
        raise DataError(f"{file} is no list of measurements for a card: some are no finite numbers")
    return rows
