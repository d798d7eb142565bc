"""Operations of a model on held-out data: what ``fas energy`` and ``fas report`` count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fas.cli.program.output import Output
from fas.loading import Loaded
from fas.types import Measurement


def count(output: Output, loaded: Loaded, batches: list[dict[str, Any]], new_tokens: int) -> tuple[Any, Any]:
    """Return the counts of the spiking and of the dense network, with a bar."""
    from fas.energy.estimate import count_both

    with output.progress("counting") as advance:
        return count_both(loaded.model, batches, new_tokens=new_tokens, progress=advance)


def add(output: Output, row: Measurement) -> None:
    """Take note of a row with its own origin."""
    stated = output.measure(row.quantity, row.value, row.unit, **row.conditions)
    output.measurements[-1] = replace(stated, origin=row.origin)
