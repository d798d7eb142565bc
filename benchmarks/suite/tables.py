"""The results as tables: speeds by model and batch, memory, neurons, growth, and what is absent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fas.cli.program.output import Output
from fas.types import Measurement


def show(output: Output) -> None:
    """Show what has been measured so far."""
    rows = output.measurements
    _roofline(output, rows)
    for model in _distinct(rows, "model", "prefill"):
        for batch in dict.fromkeys(_distinct(rows, "batch", "prefill") + _distinct(rows, "batch", "decode")):
            _speeds(output, [r for r in rows if r.conditions["model"] == model], model, batch)
    _memory(output, rows)
    _neurons(output, rows)
    _growth(output, rows)
    absent = [[r.conditions["model"], r.conditions["subject"], r.conditions["reason"]] for r in _of(rows, "absent")]
    if absent:
        output.table("Not measured", ["model", "subject", "reason"], absent)


def _roofline(output: Output, rows: Sequence[Measurement]) -> None:
    quantities = ("bandwidth.read", "bandwidth.copy", "matrix_product", "conversion", "calibration")
    found = [[r.conditions["model"], r.quantity, r.value, r.unit] for r in rows if r.quantity in quantities]
    if found:
        output.table("Machine, conversion, calibration", ["model", "quantity", "value", "unit"], found)


def _speeds(output: Output, rows: Sequence[Measurement], model: str, batch: int) -> None:
    of_batch = [row for row in rows if row.conditions.get("batch") == batch]
    lines = []
    for subject in dict.fromkeys(_distinct(of_batch, "subject", "prefill") + _distinct(of_batch, "subject", "decode")):
        own = {row.quantity: row for row in of_batch if row.conditions["subject"] == subject}
        cells = [(_ratio if "speed" in name else _value)(own, name) for name in _SPEED_COLUMNS]
        lines.append([subject, *cells])
    titles = ["subject"]
    for kind in ("prefill", "decode"):
        titles += [f"{kind} tok/s", "× dense", "× reference"]
    output.table(f"{model}, batch {batch} (ratios: median, quartiles)", [*titles, "ms/token", "logit error"], lines)


_SPEED_COLUMNS = (
    "prefill", "prefill.speed", "prefill.speed_over_reference",
    "decode", "decode.speed", "decode.speed_over_reference", "latency", "logit_error",
)  # fmt: skip


def _memory(output: Output, rows: Sequence[Measurement]) -> None:
    lines = []
    for model in _distinct(rows, "model", "memory.total"):
        of_model = [row for row in rows if row.conditions["model"] == model and row.quantity.startswith("memory")]
        for subject in _distinct(of_model, "subject", "memory.total"):
            own = {row.quantity: row for row in of_model if row.conditions["subject"] == subject}
            batch = own["memory.total"].conditions["batch"]
            cells = [_value(own, f"memory.{name}") for name in ("above_model", "total", "ratio")]
            lines.append([model, batch, subject, *cells])
    if lines:
        titles = ["model", "batch", "subject", "MiB above model", "MiB in all", "× dense"]
        output.table("Peak memory", titles, lines)


def _neurons(output: Output, rows: Sequence[Measurement]) -> None:
    lines = []
    for subject in _distinct(rows, "subject", "neuron"):
        own = {r.quantity: r for r in rows if r.quantity.startswith("neuron") and r.conditions["subject"] == subject}
        shape = "×".join(map(str, own["neuron"].conditions["shape"]))
        ratio = _ratio(own, "neuron.speed")
        lines.append(
            [subject, shape, *(_value(own, q) for q in ("neuron", "neuron.limit", "neuron.above_limit")), ratio]
        )
    if lines:
        titles = ["neurons", "T × tokens × neurons", "ms", "bandwidth limit, ms", "× limit", "× loop"]
        output.table("Neurons by themselves", titles, lines)


def _growth(output: Output, rows: Sequence[Measurement]) -> None:
    found = _of(rows, "growth")
    for axis in _distinct(found, "axis", "growth"):
        points = [row for row in found if row.conditions["axis"] == axis]
        values = _distinct([row for row in points], axis, "growth")
        slopes = {
            r.conditions["subject"]: r.value for r in _of(rows, "growth.exponent") if r.conditions["axis"] == axis
        }
        lines = []
        for subject in _distinct(points, "subject", "growth"):
            own = {row.conditions[axis]: row.value for row in points if row.conditions["subject"] == subject}
            lines.append([subject, *(own.get(value) for value in values), slopes.get(subject)])
        output.table(f"Growth with {axis}, ms per pass", ["subject", *map(str, values), "exponent"], lines)


def _of(rows: Sequence[Measurement], quantity: str) -> list[Measurement]:
    return [row for row in rows if row.quantity == quantity]


def _distinct(rows: Sequence[Measurement], condition: str, quantity: str) -> list[Any]:
    return list(dict.fromkeys(row.conditions.get(condition) for row in _of(rows, quantity)))


def _value(own: dict[str, Measurement], quantity: str) -> float | None:
    return own[quantity].value if quantity in own else None


def _ratio(own: dict[str, Measurement], quantity: str) -> str | None:
    if quantity not in own:
        return None
    low, high = own[quantity].conditions["interquartile"]
    return f"{own[quantity].value:.2f} [{low:.2f}, {high:.2f}]"
