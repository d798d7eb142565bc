"""Pictures of a file of results: speed beside dense, growth, memory, neurons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.suite.results import read
from fas.errors import MissingExtraError
from fas.types import Measurement

_FORMATS = ("svg", "png")


def draw(results: Path) -> list[Path]:
    """Draw everything that a file of results has, beside it, as SVG and PNG.

    Args:
        results: a file that ``results.write`` has made.

    Returns:
        The files written.

    Raises:
        DataError: another kind of file.
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("plots need matplotlib: pip install 'fas[plot]'") from None
    machine, rows = read(results)
    written = []
    for name, figure in _figures(Figure, rows):
        load = f"{machine.get('device')}, {machine.get('threads')} threads, load {machine.get('load')}"
        figure.text(0.005, 0.005, load, fontsize=6, color="grey")
        for kind in _FORMATS:
            path = results.parent / f"{name}.{kind}"
            figure.savefig(path, dpi=150)
            written.append(path)
    return written


def _figures(figure: Any, rows: Sequence[Measurement]) -> Iterator[tuple[str, Any]]:
    for model in _values(rows, "model", "prefill.speed"):
        of_model = [row for row in rows if row.conditions.get("model") == model]
        yield f"speed-{Path(str(model)).name}", _speed(figure, str(model), of_model)
    for quantity, name, label in (
        ("memory.ratio", "memory", "peak memory, × dense"),
        ("neuron.speed", "neuron", "speed of the neurons, × plain loop"),
    ):
        found = [row for row in rows if row.quantity == quantity]
        if found:
            drawing = figure(figsize=(7, 0.35 * len(found) + 1.2), layout="constrained")
            labels = [_label(row, with_model=quantity.startswith("memory")) for row in found]
            _bars(drawing.subplots(), labels, found, label)
            yield name, drawing
    if any(row.quantity == "growth" for row in rows):
        yield "growth", _growth(figure, rows)


def _speed(figure: Any, model: str, rows: Sequence[Measurement]) -> Any:
    quantities = ("prefill.speed", "decode.speed")
    panels = [(quantity, batch) for quantity in quantities for batch in _values(rows, "batch", quantity)]
    found = [[r for r in rows if r.quantity == q and r.conditions["batch"] == b] for q, b in panels]
    size = 3.5 * len(panels) + 1, 0.3 * max(map(len, found)) + 1.2
    drawing = figure(figsize=size, layout="constrained")
    for axes, (quantity, batch), bars in zip(
        drawing.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, found, strict=True
    ):
        _bars(axes, [_label(row) for row in bars], bars, f"{quantity.partition('.')[0]}, × dense, batch {batch}")
    drawing.suptitle(f"{model}: tokens per second beside the dense model")
    return drawing


def _bars(axes: Any, labels: list[str], rows: Sequence[Measurement], title: str) -> None:
    spread = [row.conditions.get("interquartile", [row.value, row.value]) for row in rows]
    # The median of ratios can fall outside their quartiles by rounding only.
    error = [
        [max(0.0, row.value - low) for row, (low, _) in zip(rows, spread, strict=True)],
        [max(0.0, high - row.value) for row, (_, high) in zip(rows, spread, strict=True)],
    ]
    axes.barh(labels, [row.value for row in rows], xerr=error, color="#4c72b0", ecolor="black", height=0.7)
    for label, row in zip(labels, rows, strict=True):
        axes.annotate(f" {row.value:.2f}", (row.value, label), va="bottom", fontsize=6)
    axes.axvline(1.0, color="grey", linewidth=0.8, linestyle="--")
    if not axes.yaxis_inverted():
        axes.invert_yaxis()
    axes.set_xlabel(title, fontsize=8)
    axes.tick_params(labelsize=7)


def _growth(figure: Any, rows: Sequence[Measurement]) -> Any:
    from matplotlib.ticker import LogLocator, ScalarFormatter

    found = [row for row in rows if row.quantity == "growth"]
    axes_names = _values(found, "axis", "growth")
    drawing = figure(figsize=(3.2 * len(axes_names) + 1.5, 3.4), layout="constrained")
    grid = drawing.subplots(1, len(axes_names), squeeze=False)[0]
    for axes, axis in zip(grid, axes_names, strict=True):
        for subject in _values(found, "subject", "growth"):
            of = [r for r in found if r.conditions["axis"] == axis and r.conditions["subject"] == subject]
            axes.loglog(
                [r.conditions[axis] for r in of], [r.value for r in of], marker="o", markersize=3, label=subject
            )
        values = sorted({r.conditions[axis] for r in found if r.conditions["axis"] == axis})
        axes.set_xticks(values, [str(value) for value in values])
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlabel(axis)
    grid[0].set_ylabel("ms per pass")
    drawing.legend(*grid[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return drawing


def _values(rows: Sequence[Measurement], condition: str, quantity: str) -> list[Any]:
    """Return the values that a condition takes among rows of a quantity, in their order."""
    return list(dict.fromkeys(row.conditions.get(condition) for row in rows if row.quantity == quantity))


def _label(row: Measurement, *, with_model: bool = False) -> str:
    subject = str(row.conditions["subject"])
    return f"{row.conditions['model']}: {subject}" if with_model else subject
