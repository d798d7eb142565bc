"""Calibrating with an estimate before it, a line per block, and a summary of what the network has become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fas.cli.program.output import Output
from fas.cli.program.session import is_alone
from fas.data.for_model import Sample, calibration_batches, default_data, name_of_data
from fas.loading import Loaded
from fas.memory import fewer_rows

if TYPE_CHECKING:
    from fas.config import FASConfig


def calibrate_and_report(
    output: Output, loaded: Loaded, data: str | None, sample: Sample, *, keep: Path, losses: bool = False
) -> None:
    """Run the stages of the model's method on data, and the losses if asked for; sites done are kept at a place."""
    from fas.calibration.needs import estimate_conversion
    from fas.calibration.teacher import Teacher
    from fas.conversion import calibrate, losses_of, stages_of

    source = default_data(loaded, data)
    if losses and not is_alone():
        raise ValueError("--losses is the work of one process: start one")
    # A stage before the one that runs out of memory has changed the weights, and must not do so twice.
    alone = len(stages_of(loaded.model)) == 1
    records: list[Any] = []
    teacher = Teacher(loaded.model, "auto")
    batches = calibration_batches(loaded, source, sample)
    needs = estimate_conversion(loaded.model, sum(next(iter(batch.values())).numel() for batch in batches))
    output.remark(f"calibration takes {needs}")
    loaded.model.fas_config.data = name_of_data(source)
    while not records:
        try:
            with output.progress("calibrating") as progress:
                records = calibrate(loaded.model, batches, keep=keep, progress=progress)
        except (RuntimeError, MemoryError) as error:
            sample = replace(sample, batch_size=fewer_rows(sample.batch_size if alone else 1, error))
            batches = calibration_batches(loaded, source, sample)
    if losses:
        with output.progress("aligning") as progress:
            stage = losses_of(loaded.model.fas_config.recipe, sample.seed)
            record = stage.follow(teacher, loaded.model, batches, progress)
        loaded.model.records.append(record)
        records.append(record)
    report_records(output, records, {**loaded.conditions, "data": source})


def report_records(output: Output, records: Sequence[Any], about: Mapping[str, Any]) -> None:
    """Give the figures of stages, and of every site, as rows."""
    for record in records:
        for name, value in record.results.items():
            unit = "s" if name.endswith("seconds") else _UNITS.get(name, "1")
            output.measure(f"{record.stage}.{name}", value, unit, **about)
        for site, figures in record.sites.items():
            for name, value in figures.items():
                output.measure(name, value, "1", site=site, **about)


def report_left_dense(output: Output, shares: Mapping[str, float], about: Mapping[str, Any]) -> None:
    """Give the shares of what no spikes drive as rows."""
    for path, share in shares.items():
        output.measure("left_dense", share, "1", path=path, **about)


def report_summary(output: Output, loaded: Loaded, config: FASConfig, out: Path) -> None:
    """Say in some ten lines what spikes, what does not, where accuracy is lost, and what to do next."""
    from fas.reporting.summary import summarise

    for line in summarise(loaded.model if loaded.converted else config).lines():
        output.text(line)
    output.text(f"written to {out}, next:")
    # A single file has no test part to measure on.
    text = " --data TEXT" if config.data is None or Path(config.data).is_file() else ""
    if not config.records:
        output.text(f"  fas calibrate {out} --data TEXT")
        return
    commands = [f"fas evaluate {out}{text}", f"fas report {out}{text}", f"fas inspect {out}"]
    for command in [*([f"fas generate {out} -p 'Once upon a time'"] if loaded.generates else []), *commands]:
        output.text(f"  {command}")


_UNITS = {"tokens": "tokens", "expected_divergence": "nats"}
