"""Calibrating with a bar, and showing layer by layer where accuracy is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fas.cli.program.output import Output
from fas.cli.program.session import is_alone
from fas.data.for_model import Sample, calibration_batches, default_data
from fas.loading import Loaded
from fas.memory import fewer_rows


def calibrate_and_report(
    output: Output, loaded: Loaded, data: str | None, sample: Sample, *, keep: Path, losses: bool = False
) -> None:
    """Run the stages of the model's method on data, and the losses if asked for; sites done are kept at a place."""
    from fas.calibration.teacher import Teacher
    from fas.conversion import calibrate, losses_of, stages_of

    source = default_data(loaded, data)
    if losses and not is_alone():
        raise ValueError("--losses is the work of one process: start one")
    # A stage before the one that runs out of memory has changed the weights, and must not do so twice.
    alone = len(stages_of(loaded.model)) == 1
    records: list[Any] = []
    teacher = Teacher(loaded.model, "auto")
    while not records:
        batches = calibration_batches(loaded, source, sample)
        try:
            with output.progress("calibrating") as progress:
                records = calibrate(loaded.model, batches, keep=keep, progress=progress)
        except (RuntimeError, MemoryError) as error:
            sample = replace(sample, batch_size=fewer_rows(sample.batch_size if alone else 1, error))
    if losses:
        with output.progress("aligning") as progress:
            stage = losses_of(loaded.model.fas_config.recipe, sample.seed)
            record = stage.follow(teacher, loaded.model, batches, progress)
        loaded.model.records.append(record)
        records.append(record)
    report_records(output, records, {**loaded.conditions, "data": source})


def report_records(output: Output, records: Sequence[Any], about: Mapping[str, Any]) -> None:
    """Give the figures of stages as rows, and those of the sites as a table."""
    for record in records:
        for name, value in record.results.items():
            unit = "s" if name.endswith("seconds") else _UNITS.get(name, "1")
            output.measure(f"{record.stage}.{name}", value, unit, **about)
        for site, figures in record.sites.items():
            for name, value in figures.items():
                output.measure(name, value, "1", site=site, **about)
        if record.sites:
            output.table(
                f"{record.stage}: where accuracy is lost",
                ["site", "relative error", "spikes per neuron", "mean threshold"],
                [[path, *(float(f[k]) for k in _COLUMNS)] for path, f in record.sites.items()],
            )


def report_left_dense(output: Output, shares: Mapping[str, float], about: Mapping[str, Any]) -> None:
    """Say what no spikes drive, and give its shares as rows."""
    for path, share in shares.items():
        output.measure("left_dense", share, "1", path=path, **about)
    from fas.surgery.left_dense import in_words

    output.remark(in_words(shares))


_UNITS = {"tokens": "tokens", "expected_divergence": "nats"}
_COLUMNS = ("relative_error", "spikes_per_neuron", "threshold_mean")
