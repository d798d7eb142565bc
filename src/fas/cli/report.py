"""``fas report``: one page about a spiking network, with everything that can be seen in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fas
from fas.cli.program.options import BatchSize, Device, Json, Model, Seed, Window, whole_numbers, words
from fas.cli.program.output import Output, read_rows
from fas.types import Coverage


def report(
    context: typer.Context,
    model: Model,
    data: Annotated[str | None, typer.Option(help="Text source, or table, to measure on: its test part.")] = None,
    out: Annotated[Path | None, typer.Option(help="The page; `MODEL-report.html` if not given.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for every figure as SVG and PNG.")] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(help="Rows that `fas compare` wrote (--out, --json): shown too; repeatable."),
    ] = None,
    timesteps: Annotated[
        str | None, typer.Option(help="T to try, comma-separated; around the model's if none.")
    ] = None,
    test_tokens: Annotated[int, typer.Option(help="Tokens to score on.", min=2)] = 2048,
    counted_tokens: Annotated[int, typer.Option(help="Tokens to count operations and spikes on.", min=1)] = 512,
    calibration_data: Annotated[
        str | None, typer.Option(help="Text to fit coarse thresholds on, or those of a dense model.")
    ] = None,
    coarse: Annotated[bool, typer.Option(help="Also fit coarse thresholds, to show what fine ones change.")] = True,
    anytime: Annotated[bool, typer.Option(help="Show early exit, where the network can.")] = True,
    prices: Annotated[str, typer.Option(help="Cost models, several with commas; the first is drawn.")] = "45nm",
    coverage: Annotated[Coverage, typer.Option(help="Of a dense model: what to convert.")] = "linear",
    window: Window = None,
    batch_size: BatchSize = 8,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write one HTML page that needs no network: quality, firing, thresholds, spikes, errors by layer, energy.

    A dense model is converted first (T = 8), and not saved. The page follows the reader's light or dark setting.
    Run an interrupted report again with the same command, and it resumes.

    Example: `fas report gpt2-snn --data wikitext --out gpt2.html --figures build/figures`
    """
    with Output.opened(context, as_json) as output:
        from fas.data.for_model import Sample, calibration_batches, check_apart, contents, default_data
        from fas.reporting.look import look
        from fas.reporting.page import write_report
        from fas.reporting.theme import style
        from fas.saving import check_writable

        page = out or Path(f"{Path(model).name}-report.html")
        for place in (page, *([] if figures is None else [figures / "any.svg"])):
            check_writable(place)
        with style():  # a missing library is said before the work
            rows = [row for path in results or () for row in read_rows(path)]
        asked = whole_numbers(timesteps, "--timesteps") if timesteps else []
        loaded, kept = fas.load(model, device), output.keep(model, data, calibration_data, *(results or ()))
        with output.progress("reporting") as progress:
            if not loaded.converted:
                output.remark(f"converting, coverage {coverage}, T = 8")
                source = default_data(loaded, data)
                given = calibration_data or source
                batches = calibration_batches(loaded, given, Sample(4096, window, batch_size, seed))
                parts = contents(loaded, given, "train"), contents(loaded, source, "test")
                check_apart(*parts, given, source, "--calibration-data")
                fas.convert(loaded.model, fas.FAS(coverage=coverage))
                fas.calibrate(loaded.model, batches, keep=kept.folder("converting"), progress=progress)
            findings = look(
                loaded, data, timesteps=asked, test_tokens=test_tokens, tokens=counted_tokens,
                calibration_data=calibration_data, coarse=coarse, anytime=anytime, prices=words(prices), results=rows,
                window=window, batch_size=batch_size, seed=seed, command=context.obj.command, kept=kept,
                progress=progress,
            )  # fmt: skip
        written = write_report(findings, page, figures=figures)
        about = {**loaded.conditions, "data": findings.data}
        for entry in findings.quality:
            stated = {**about, "network": entry.network, "timesteps": entry.timesteps, "tokens": test_tokens}
            output.measure(findings.score, entry.value, "1", **stated)
        output.measure("agreement", findings.agreement, "1", **about)
        output.measure("report_time", findings.seconds, "s", **about, page=str(page), files=len(written))
        output.text(f"wrote {page}" + (f" and {len(written) - 1} files in {figures}" if figures else ""))
