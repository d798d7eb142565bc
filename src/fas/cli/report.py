"""``fas report``: one page about a spiking network, with everything that can be seen in it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fas.cli._calibration import conditions
from fas.cli._options import BatchSize, Device, Json, Model, Seed, Window, whole_numbers, words
from fas.cli._output import Output
from fas.types import Coverage, Measurement

_MARGINS = tuple(0.25 * i for i in range(33))


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
        from fas.cli._counted import count, generates, held_out_batches
        from fas.cli._data import calibration_batches, default_data, is_classifier
        from fas.cli._measured import Scores
        from fas.cli._models import load
        from fas.energy.estimate import Estimate, levels_of
        from fas.energy.prices import load_prices
        from fas.report import measure
        from fas.report.findings import Findings
        from fas.report.page import write_report
        from fas.report.theme import style

        page = out or Path(f"{Path(model).name}-report.html")
        with style():  # a missing library is said before the work
            rows = [row for path in results or () for row in _rows(path)]
        cost_models = [load_prices(name) for name in words(prices)]
        asked = whole_numbers(timesteps, "--timesteps") if timesteps else None
        loaded = load(model, device)
        source = default_data(loaded, data)
        new = 8 if generates(loaded) and loaded.model.main_input_name == "input_ids" else 0
        sample: dict[str, Any] = {"window": window, "batch_size": batch_size, "seed": seed}
        calibration: list[dict[str, Any]] = []
        if coarse or not loaded.converted:
            limit = 512 if loaded.converted else 8192
            calibration = calibration_batches(loaded, calibration_data or source, limit=limit, **sample)
        if not loaded.converted:
            _convert(output, loaded, coverage, calibration)
        network = loaded.model
        steps = asked or sorted({max(1, network.timesteps // 4), max(1, network.timesteps // 2), network.timesteps})
        steps = sorted({*steps, network.timesteps})
        batches = held_out_batches(loaded, source, limit=tokens, new_tokens=0, **sample)
        # Prompts leave room for what is written behind them.
        prompts = [{name: value[:, : max(1, value.shape[1] - new)] for name, value in b.items()} for b in batches]
        spiking, dense = count(output, loaded, prompts if new else batches, new)
        estimates = [Estimate(spiking, dense, levels_of(network), cost) for cost in cost_models]
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
        sites = measure.site_findings(network, batches, calibration if coarse else [])
        exits = []
        if early_exit and new and not network.config.is_encoder_decoder and not is_classifier(loaded):
            output.remark("stopping early")
            exits = measure.early_exits(network, batches[0], _MARGINS)
        about = conditions(loaded)
        findings = Findings(
            name=Path(model).name, facts=_facts(about), score=name_of_score, quality=quality, sites=sites,
            rasters=measure.rasters(network, batches[0]), agreement=measure.agreement(network, batches[0]),
            estimates=estimates, exits=exits, command=context.obj.command, versions=_versions(),
            seconds=time.perf_counter() - began, data=source, results=rows,
        )  # fmt: skip
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


def _rows(path: Path) -> list[Measurement]:
    """Read rows that another command has printed.

    Raises:
        DataError: something else.
    """
    from fas.errors import DataError

    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise TypeError("no list")
        found = [Measurement(**row) for row in rows]
        if not all(isinstance(row.conditions, dict) for row in found):
            raise TypeError("conditions are no table")
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise DataError(f"{path} holds no rows of a fas command ({error}): write them with --json > {path}") from None
    # JSON has no infinity; what was not finite cannot be drawn.
    return [row for row in found if isinstance(row.value, int | float)]


def _facts(about: dict[str, Any]) -> dict[str, str]:
    names = {
        "method": "method", "coverage": "coverage", "neuron": "neuron", "timesteps": "time steps", "levels": "levels",
        "schedule": "schedule", "operators": "operators", "execution": "execution",
    }  # fmt: skip
    return {title: str(about[name]) for name, title in names.items() if name in about}


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    from fas import __version__

    return {
        "fas": __version__,
        **{name: version(name) for name in ("torch", "transformers", "matplotlib")},
        "Python": platform.python_version(),
    }
