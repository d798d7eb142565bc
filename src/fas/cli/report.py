"""``fas report``: one page about a spiking network, with everything that can be seen in it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fas.cli._calibration import conditions
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
        typer.Option(help="Rows that another command printed with --json (compare, ablate): shown too; repeatable."),
    ] = None,
    timesteps: Annotated[str | None, typer.Option(help="T to try, several; around the model's if not given.")] = None,
    test_tokens: Annotated[int, typer.Option(help="Tokens to score on.", min=2)] = 2048,
    tokens: Annotated[int, typer.Option(help="Tokens to count operations and spikes on.", min=1)] = 512,
    calibration_data: Annotated[
        str | None, typer.Option(help="Where coarse thresholds, or those of a dense model, are fitted.")
    ] = None,
    coarse: Annotated[
        bool, typer.Option(help="Fit coarse thresholds once more, to show what fine ones change.")
    ] = True,
    early_exit: Annotated[bool, typer.Option(help="Show early stopping, where the network can.")] = True,
    prices: Annotated[str, typer.Option(help="Cost models, several with commas; the first is drawn.")] = "45nm",
    coverage: Annotated[Coverage, typer.Option(help="Of a dense model: what to convert.")] = "linear",
    window: Window = None,
    batch_size: BatchSize = 8,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page: quality, firing, thresholds, spikes, errors by layer, energy.

    A dense model is converted first (T = 8), and not saved. The page needs no network and follows the light or
    dark setting of whoever reads it.

    Example: `fas report gpt2-snn --data wikitext --out gpt2.html --figures build/figures`
    """
    began = time.perf_counter()
    with Output.opened(context, as_json) as output:
        from fas.cli._counted import count
        from fas.cli._findings import look
        from fas.data.for_model import Sample, calibration_batches, default_data, held_out_batches
        from fas.energy.estimate import Estimate, levels_of
        from fas.energy.prices import load_prices
        from fas.evaluation.score import Scores
        from fas.loading import load
        from fas.reporting import measure
        from fas.reporting.page import write_report
        from fas.reporting.theme import style
        from fas.saving import check_writable

        page = out or Path(f"{Path(model).name}-report.html")
        for place in (page, *([] if figures is None else [figures / "any.svg"])):
            check_writable(place)
        with style():  # a missing library is said before the work
            rows = [row for path in results or () for row in read_rows(path)]
        # JSON has no infinity; what was not finite cannot be drawn.
        rows = [row for row in rows if isinstance(row.value, int | float)]
        cost_models = [load_prices(name) for name in words(prices)]
        if not cost_models:
            raise ValueError("--prices names no cost model: pass 45nm, or another one")
        asked = whole_numbers(timesteps, "--timesteps") if timesteps else None
        loaded = load(model, device)
        source = default_data(loaded, data)
        sample = Sample(tokens, window, batch_size, seed)
        calibration: list[dict[str, Any]] = []
        if coarse or not loaded.converted:
            limit = 512 if loaded.converted else 8192
            calibration = calibration_batches(loaded, calibration_data or source, replace(sample, tokens=limit))
        if not loaded.converted:
            _convert(output, loaded, coverage, calibration)
        network = loaded.model
        steps = asked or sorted({max(1, network.timesteps // 4), max(1, network.timesteps // 2), network.timesteps})
        steps = sorted({*steps, network.timesteps})
        batches = held_out_batches(loaded, source, sample)
        scores = Scores(loaded, source, limit=test_tokens, window=window, batch_size=batch_size)
        name_of_score = ""

        def score() -> float:
            nonlocal name_of_score
            found = scores.of(loaded)
            name_of_score = next(iter(found))
            return found[name_of_score]

        output.remark(f"scoring at T = {', '.join(map(str, steps))}")
        prefill = Estimate(*count(output, loaded, batches, 0), levels_of(network), cost_models[0])
        quality = measure.quality_over_time(network, score, steps, batches, prefill)
        output.remark("looking at every site")
        # A part of what a dense model was calibrated on is enough to see where coarse thresholds lie.
        before = measure.coarse_thresholds(network, calibration[:1]) if coarse else None
        findings = look(
            output, loaded, batches, cost_models, source=source, command=context.obj.command, coarse=before,
            early_exit=early_exit,
        )  # fmt: skip
        findings = replace(
            findings, score=name_of_score, quality=quality, results=rows, seconds=time.perf_counter() - began
        )
        about = conditions(loaded)
        written = write_report(findings, page, figures=figures)
        for entry in quality:
            stated = {**about, "network": entry.network, "timesteps": entry.timesteps, "data": source}
            output.measure(name_of_score, entry.value, "1", **stated)
        output.measure("agreement", findings.agreement, "1", **about, data=source)
        output.measure("report_time", time.perf_counter() - began, "s", **about, page=str(page), files=len(written))
        output.text(f"wrote {page}" + (f" and {len(written) - 1} files in {figures}" if figures else ""))


def _convert(output: Output, loaded: Any, coverage: str, calibration: Any) -> None:
    from fas.conversion import convert
    from fas.methods.fas import FAS

    output.remark(f"converting, coverage {coverage}, T = 8")
    plan = FAS(coverage=coverage)  # type: ignore[arg-type]
    with output.progress("calibrating") as advance:
        convert(loaded.model, plan, calibration=calibration, progress=lambda _, done, total: advance(done, total))
