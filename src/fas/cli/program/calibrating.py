"""What calibration has found, as rows, and a summary of what the network has become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fas.cli.program.output import Output

if TYPE_CHECKING:
    from fas.config import FASConfig

_UNITS = {"tokens": "tokens", "expected_divergence": "nats"}


def report_records(output: Output, records: Sequence[Any], about: Mapping[str, Any]) -> None:
    """Give as rows the figures of stages and of every site."""
    for record in records:
        for name, value in record.results.items():
            unit = "s" if name.endswith("seconds") else _UNITS.get(name, "1")
            output.measure(f"{record.stage}.{name}", value, unit, **about)
        for site, figures in record.sites.items():
            for name, value in figures.items():
                output.measure(name, value, "1", site=site, **about)


def report_conversion(
    output: Output, config: FASConfig, about: Mapping[str, Any], out: Path, model: Any = None
) -> None:
    """Give the figures as rows; say in some ten lines what spikes, what does not, where it errs, and what is next."""
    from fas.reporting.summary import summarise

    report_records(output, config.records, about)
    for path, share in (config.left_dense or {}).items():
        output.measure("left_dense", share, "1", path=path, **about)
    # A single file has no test part to measure on.
    text = " --data TEXT" if config.data is None or Path(config.data).is_file() else ""
    commands = [f"fas evaluate {out}{text}", f"fas report {out}{text}", f"fas inspect {out}"]
    if (out / "generation_config.json").is_file():
        commands.insert(0, f"fas generate {out} -p 'Once upon a time'")
    if not config.records:
        commands = [f"fas calibrate {out} --data TEXT"]
    lines = [*summarise(config if model is None else model).lines(), f"written to {out}, next:"]
    for line in [*lines, *(f"  {command}" for command in commands)]:
        output.text(line)
