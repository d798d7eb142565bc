"""``fas export``: a spiking model for other simulators (NIR), for hardware in whole numbers, or placed on a chip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import fas
from fas.cli.program.options import Device, Json, Model, OwnSchedule, OwnTimesteps, Seed, Window
from fas.cli.program.output import Output
from fas.types import Measurement

_Bits = Literal["16", "24"]


def export(
    context: typer.Context,
    model: Model,
    to: Annotated[
        str,
        typer.Option(
            help="nir: graphs with traces; fixed-point: whole numbers in one safetensors file; loihi2, spinnaker2, or "
            "a TOML file of the same form: an estimate of cores, chips and messages, which writes nothing."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Directory to write (nir) or file (fixed-point).")] = None,
    data: Annotated[str | None, typer.Option(help="Text source, or GLUE-style table, to run on.")] = None,
    trace_tokens: Annotated[
        int | None, typer.Option(help="Tokens to run on for traces and figures; 32 by default, 512 for a chip.", min=1)
    ] = None,
    window: Window = None,
    site: Annotated[list[str] | None, typer.Option(help="Export this site only; repeat for several.")] = None,
    timesteps: OwnTimesteps = None,
    schedule: OwnSchedule = None,
    membrane_bits: Annotated[_Bits, typer.Option(help="Bits of thresholds and potentials, for fixed-point.")] = "16",
    test_tokens: Annotated[
        int,
        typer.Option(help="For fixed-point: score the whole model in whole numbers on this many test tokens.", min=0),
    ] = 0,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write a converted model block by block: the neurons of every site between their linear layers.

    `nir` writes a graph per site, what it receives and answers in a run of the model, and the settings with which
    snnTorch, SpikingJelly, sinabs and Norse send the same spikes. `fixed-point` writes 8-bit weights, integer
    thresholds and power-of-two scales, and measures what they cost, site by site.

    A chip (`loihi2`, `spinnaker2`) is an estimate of neurons, synapses, cores and chips: sites are placed one after the
    other. Traffic is stated where `--data` names a text or table to measure spikes on: its test part. What no spike
    drives (normalisation, softmax, embeddings) is not placed: `fas inspect` lists it.

    Example: `fas export gpt2-snn --to nir --out gpt2-nir --data wikitext`

    Example: `fas export gpt2-snn --to spinnaker2 --data wikitext`
    """
    with Output.opened(context, as_json) as output:
        from fas.saving import check_writable

        if out is not None:
            check_writable(out)
        loaded = fas.load(model, device)
        loaded.need_converted()
        loaded.set(timesteps, schedule)
        bits: Any = int(membrane_bits)
        with output.progress("exporting") as progress:
            found = fas.export(
                loaded, to, out, data, sites=site, tokens=trace_tokens, window=window, membrane_bits=bits,
                test_tokens=test_tokens, seed=seed, progress=progress,
            )  # fmt: skip
        output.add(*found)
        _by_site(output, f"{loaded.name} to {to}", found)
        whole = [(row, row.conditions.get("weight_bits")) for row in found if "site" not in row.conditions]
        if whole:
            cells = [[row.quantity, row.value, row.unit, f"{b} bits" if b else "", row.origin] for row, b in whole]
            titles = ["quantity", "value", "unit", "weights", "origin"]
            output.table(f"{loaded.name} to {to}, the whole model", titles, cells)
        assumed = dict.fromkeys(name for row in found for name in row.conditions.get("assumptions", ()))
        if assumed:
            output.text(f"Assumed, not from a source that was read: {', '.join(assumed)}.")
        if out is not None:
            output.remark(f"written to {out}")


def _by_site(output: Output, title: str, found: Sequence[Measurement]) -> None:
    """Show a line for every site, a column for every quantity."""
    figures: dict[str, dict[str, float]] = {}
    for row in found:
        if "site" in row.conditions:
            figures.setdefault(row.conditions["site"], {})[row.quantity] = row.value
    names = list(dict.fromkeys(name for sites in figures.values() for name in sites))
    cells = [[site, *(own.get(name) for name in names)] for site, own in figures.items()]
    output.table(title, ["site", *(name.replace("_", " ") for name in names)], cells)
