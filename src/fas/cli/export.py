"""``fas export``: a spiking model for other simulators (NIR) or for hardware in whole numbers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fas.cli.program.options import Data, Device, Json, Model, Seed, Window
from fas.cli.program.output import Output
from fas.types import Schedule


class _Target(StrEnum):
    NIR = "nir"
    FIXED_POINT = "fixed-point"


class _Bits(StrEnum):
    SIXTEEN = "16"
    TWENTY_FOUR = "24"


def export(
    context: typer.Context,
    model: Model,
    to: Annotated[_Target, typer.Option(help="NIR graphs with traces, or whole numbers in one safetensors file.")],
    out: Annotated[Path, typer.Option(help="Directory to write for nir, file for fixed-point.")],
    data: Data = None,
    tokens: Annotated[int, typer.Option(help="Tokens to run on for the traces and figures.", min=1)] = 32,
    window: Window = None,
    site: Annotated[list[str] | None, typer.Option(help="Export this site only; repeat for several.")] = None,
    timesteps: Annotated[int | None, typer.Option(help="T; the model's if not given.", min=1)] = None,
    schedule: Annotated[Schedule | None, typer.Option(help="The model's if not given.")] = None,
    membrane_bits: Annotated[
        _Bits, typer.Option(help="Of thresholds and potentials, for fixed-point.")
    ] = _Bits.SIXTEEN,
    test_tokens: Annotated[
        int,
        typer.Option(help="For fixed-point: score the whole model in whole numbers on so many test tokens.", min=0),
    ] = 0,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write a converted model block by block: the neurons of every site between their linear layers.

    `nir` writes a graph per site, what it receives and answers in a run of the model, and the settings with which
    snnTorch, SpikingJelly, sinabs and Norse send the same spikes. `fixed-point` writes 8-bit weights, integer
    thresholds and power-of-two scales, and measures what they cost, site by site.

    Example: `fas export gpt2-snn --to nir --out gpt2-nir --data wikitext`
    """
    with Output.opened(context, as_json) as output:
        from fas.cli._calibration import conditions
        from fas.data.for_model import Sample, calibration_batches, default_data
        from fas.errors import DataError
        from fas.loading import load

        _check_place(out, to)
        loaded = load(model, device)
        loaded.need_converted()
        if loaded.model.main_input_name != "input_ids":
            raise DataError(
                f"{model} takes {loaded.model.main_input_name}, for which the command line reads no data: call "
                "fas.exporting.nir.export_nir(model, directory, inputs) in Python"
            )
        if timesteps is not None:
            loaded.set_timesteps(timesteps)
        if schedule is not None:
            loaded.model.schedule = schedule
        source = default_data(loaded, data)
        length = min(tokens, window or tokens, loaded.context or tokens)
        batches = calibration_batches(loaded, source, Sample(tokens, length, tokens, seed))
        about = {**conditions(loaded), "data": source, "tokens": tokens}
        if to is _Target.NIR:
            _to_nir(output, loaded, out, batches[0], site, tokens, about)
        else:
            _to_fixed_point(output, loaded, out, batches[0], site, tokens, about, membrane_bits)
            if test_tokens:
                _score(output, loaded, out, source, test_tokens, conditions(loaded))


def _to_nir(
    output: Output, loaded: Any, out: Path, inputs: Any, sites: list[str] | None, rows: int, about: dict[str, Any]
) -> None:
    from fas.exporting.nir import export_nir

    checks = export_nir(loaded.model, out, inputs, sites=sites, rows=rows, about={"model": loaded.name})
    for check in checks:
        output.measure("spike_mismatches", check.mismatches, "spikes", **about, site=check.site, of=check.compared)
        output.measure("relative_error", check.error, "1", **about, site=check.site)
    output.table(
        f"{loaded.name}: blocks simulated step by step against the model",
        ["site", "spikes", "mismatches", "of", "relative error"],
        [[c.site, c.spikes, c.mismatches, c.compared, c.error] for c in checks],
    )
    output.remark(f"written to {out}: {len(checks)} blocks")


def _to_fixed_point(
    output: Output,
    loaded: Any,
    out: Path,
    inputs: Any,
    sites: list[str] | None,
    rows: int,
    about: dict[str, Any],
    bits: _Bits,
) -> None:
    from fas.exporting.fixed_point import export_fixed_point

    membrane_bits: Any = int(bits)
    costs = export_fixed_point(loaded.model, out, inputs, membrane_bits=membrane_bits, sites=sites, rows=rows)
    stated = {**about, "weight_bits": 8, "membrane_bits": membrane_bits}
    for cost in costs:
        for name in ("relative_error", "weight_error", "threshold_error", "spike_errors"):
            output.measure(name, getattr(cost, name), "1", **stated, site=cost.site)
        output.measure("saturated", cost.saturated, "potentials", **stated, site=cost.site)
        output.measure("accumulator", cost.accumulator_bits, "bits", **stated, site=cost.site)
    output.table(
        f"{loaded.name}: what 8-bit weights and {membrane_bits}-bit potentials cost",
        ["site", "relative error", "weight error", "threshold error", "spike errors", "saturated", "accumulator bits"],
        [
            [
                c.site,
                c.relative_error,
                c.weight_error,
                c.threshold_error,
                c.spike_errors,
                c.saturated,
                c.accumulator_bits,
            ]
            for c in costs
        ],
    )
    output.remark(f"written to {out}: {len(costs)} blocks")


def _score(output: Output, loaded: Any, file: Path, source: str, limit: int, about: dict[str, Any]) -> None:
    """Say what the written file costs from end to end: the score of the model, and with its parameters."""
    from fas.evaluation.score import Scores
    from fas.exporting.fixed_point import load_fixed_point
    from fas.exporting.rounded import rounded

    scores = Scores(loaded, source, limit=limit)
    fixed = load_fixed_point(file)
    with output.progress("scoring") as advance:
        before = scores.of(loaded, advance)
        with rounded(loaded.model, fixed):
            after = scores.of(loaded, advance)
    stated = {**about, **scores.about}
    for name, value in after.items():
        output.measure(name, before[name], "1", **stated)
        output.measure(name, value, "1", **stated, weight_bits=8, membrane_bits=fixed[0].membrane_bits)
    output.table(
        f"{loaded.name} on {scores.source}, the written blocks in whole numbers",
        ["score", "as it is", "in whole numbers"],
        [[name, float(before[name]), float(value)] for name, value in after.items()],
    )


def _check_place(out: Path, to: _Target) -> None:
    """Refuse, before the work begins, a place that holds something else."""
    from fas.errors import FASError
    from fas.exporting.nir import SIDECAR
    from fas.saving import check_writable

    check_writable(out)
    if to is _Target.FIXED_POINT:
        if out.is_dir():
            raise FASError(f"{out} is a directory: name a file, as {out / 'model.safetensors'}")
        return
    if out.exists() and not out.is_dir():
        raise FASError(f"{out} is a file: name a directory to write to")
    if out.is_dir() and any(out.iterdir()) and not (out / SIDECAR).is_file():
        raise FASError(f"{out} holds other files: name a new directory, or an earlier export to replace")
