"""Figures of what other commands have measured: several methods over T, and an ablation."""

from __future__ import annotations

from collections.abc import Sequence

from fas.report.figures import Drawing
from fas.report.theme import LIGHT, new_figure
from fas.types import Measurement

_LINES = ("spiking", "quantised", "green", "violet", "rose", "sand")


def result_figures(rows: Sequence[Measurement]) -> list[Drawing]:
    """Draw scores of several plans over T and over spikes, where rows of ``fas compare`` or ``fas ablate`` are."""
    scores = [row for row in rows if "plan" in row.conditions and row.quantity in ("perplexity", "accuracy")]
    if not scores:
        return []
    score = scores[0].quantity
    lines: dict[str, list[tuple[int, float, float | None]]] = {}
    spikes = {_key(row): row.value for row in rows if row.quantity == "spikes_per_neuron"}
    for row in scores:
        if row.quantity == score and row.conditions.get("network") == "snn":
            label = ", ".join(str(row.conditions.get(name, "")) for name in ("plan", "coverage", "neuron"))
            lines.setdefault(label, []).append((int(row.conditions["timesteps"]), row.value, spikes.get(_key(row))))
    dense = next((row.value for row in rows if row.quantity == score and row.conditions.get("network") == "ann"), None)
    over_time = any(len(points) > 1 for points in lines.values())
    figure = _curves(lines, dense, score) if over_time else _steps(lines, dense, score)
    return [
        Drawing(
            "comparison",
            "Methods side by side" if over_time else "What each part of the calibration is worth",
            f"{score.capitalize()} of other conversions of the same model, as measured by the commands whose results "
            "were given to this report. Compare systems by spikes and levels, not by T alone. Grey: the dense network.",
            figure,
        )
    ]


def _key(row: Measurement) -> tuple[object, ...]:
    return tuple(row.conditions.get(name) for name in ("plan", "coverage", "neuron", "timesteps", "network"))


def _curves(lines: dict[str, list[tuple[int, float, float | None]]], dense: float | None, score: str) -> object:
    figure, (left, right) = new_figure(3.4, 1, 2, sharey=True)
    for number, (label, points) in enumerate(lines.items()):
        colour = LIGHT[_LINES[number % len(_LINES)]]
        points = sorted(points)
        left.plot([t for t, _, _ in points], [v for _, v, _ in points], marker="o", color=colour, label=label)
        known = [(s, v) for _, v, s in points if s is not None]
        right.plot([s for s, _ in known], [v for _, v in known], marker="o", color=colour)
    left.set_xscale("log", base=2)
    steps = sorted({t for points in lines.values() for t, _, _ in points})
    left.set_xticks(steps, [str(t) for t in steps])
    left.minorticks_off()
    for axes in (left, right):
        if dense is not None:
            axes.axhline(dense, color=LIGHT["dense"], linewidth=1.3)
    left.set(xlabel="time steps T", ylabel=score)
    right.set(xlabel="spikes per neuron and window")
    left.legend(loc="best")
    return figure


def _steps(lines: dict[str, list[tuple[int, float, float | None]]], dense: float | None, score: str) -> object:
    figure, axes = new_figure(0.34 * len(lines) + 1.0)
    for place, points in enumerate(lines.values()):
        value = points[0][1]
        axes.barh(place, value, height=0.6, color=LIGHT["spiking"])
        axes.annotate(f" {value:.4g}", (value, place), va="center", fontsize=8, color=LIGHT["muted"])
    if dense is not None:
        axes.axvline(dense, color=LIGHT["dense"], linewidth=1.6)
    axes.set_yticks(range(len(lines)), list(lines))
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(score)
    return figure
