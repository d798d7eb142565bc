"""What calibration has found, as rows, and a summary of what the network has become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fas.cli.program.output import Output
from fas.loading import Loaded

if TYPE_CHECKING:
    from fas.config import FASConfig


def report_records(
    output: Output, records: Sequence[Any], about: Mapping[str, Any], left_dense: Mapping[str, float] | None = None
) -> None:
    """Give as rows the figures of stages and of every site, and the shares of what no spikes drive."""
    for record in records:
        for name, value in record.results.items():
            unit = "s" if name.endswith("seconds") else _UNITS.get(name, "1")
            output.measure(f"{record.stage}.{name}", value, unit, **about)
        for site, figures in record.sites.items():
            for name, value in figures.items():
                output.measure(name, value, "1", site=site, **about)
    for path, share in (left_dense or {}).items():
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
