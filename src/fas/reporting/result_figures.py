"""Figures of several conversions side by side: quality over T, against spikes and energy, beside dense networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fas.errors import DataError
from fas.reporting.theme import LIGHT, Drawing, logarithmic, new_figure, note, over_time, save, style
from fas.saving import check_writable
from fas.types import Measurement

_LINES = ("spiking", "quantised", "green", "violet", "rose", "sand")
_SIDES = ((1, 1), (-1, 1), (1, -1), (-1, -1))
_SCORES = ("perplexity", "accuracy", "pearson")
# Networks so many times as bad as the worst spiking one are not drawn.
_SHOWN = 1.2


@dataclass
class Point:
    """One conversion at one T.

    Attributes:
        conditions: of its rows.
        value: of the spiking network.
        spikes: per neuron and window.
        energy: pJ per token, accounting compute, in the precision of the dense network.
    """

    conditions: dict[str, Any]
    value: float
    spikes: float | None = None
    energy: float | None = None

    @property
    def timesteps(self) -> int:
        """T."""
        return int(self.conditions["timesteps"])


@dataclass
class Results:
    """Rows of other conversions, gathered.

    Attributes:
        score: what they were measured by.
        dense: of the dense network.
        dense_energy: pJ per token, accounting compute.
        curves: conversions over T, by what they have in common.
    """

    score: str = ""
    dense: float | None = None
    dense_energy: float | None = None
    curves: dict[str, list[Point]] = field(default_factory=dict)


def gather(rows: Sequence[Measurement]) -> Results:
    """Return what rows of ``fas compare`` say; rows of other commands are left out."""
    scores = [row for row in rows if row.quantity in _SCORES]
    planned = [row for row in scores if "plan" in row.conditions and row.conditions.get("network") == "snn"]
    if not planned:
        return Results()
    score = planned[0].quantity
    found = Results(score)
    found.dense = next((r.value for r in scores if r.quantity == score and r.conditions.get("network") == "ann"), None)
    spikes = {_key(row): row.value for row in rows if row.quantity == "spikes_per_neuron"}
    bills = [row for row in rows if row.quantity == "energy" and row.conditions.get("accounting") == "compute"]
    energies = {_key(row): row.value for row in bills if row.conditions.get("energy_of") == "snn"}
    found.dense_energy = next((row.value for row in bills if row.conditions.get("energy_of") == "ann"), None)
    same_plan = len({row.conditions["plan"] for row in planned}) == 1
    for row in planned:
        if row.quantity != score:
            continue
        key = _key(row)
        point = Point(dict(row.conditions), row.value, spikes.get(key), energies.get(key))
        names = ("coverage", "neuron") if same_plan else ("plan", "coverage", "neuron")
        label = ", ".join(str(row.conditions.get(name, "")) for name in names)
        found.curves.setdefault(label, []).append(point)
    for points in found.curves.values():
        points.sort(key=lambda point: point.timesteps)
    return found


def _key(row: Measurement) -> tuple[object, ...]:
    return tuple(row.conditions.get(name) for name in ("plan", "coverage", "neuron", "timesteps"))


def result_figures(rows: Sequence[Measurement]) -> list[Drawing]:
    """Draw several conversions over T and over their cost, where there are rows of them."""
    found = gather(rows)
    return [*([_comparison(found)] if found.curves else []), *_beside_dense(rows)]


def check_drawing(path: Path) -> None:
    """Refuse, before the work, a place that cannot be written to and a library that is missing."""
    check_writable(path)
    with style():
        pass


def draw(rows: Sequence[Measurement], path: Path) -> None:
    """Write the first of these figures as an svg, png or pdf file; refuse rows that have none (DataError)."""
    with style():
        found = result_figures(rows)
        if not found:
            raise DataError("no perplexity was measured, so there is nothing to draw; leave --plot out")
        path.parent.mkdir(parents=True, exist_ok=True)
        save(found[0].figure, path)


def _beside_dense(rows: Sequence[Measurement]) -> list[Drawing]:
    """Draw what ``fas energy`` has measured: perplexity against spikes, and the dense networks at their break-even."""
    told = [row for row in rows if "perplexity" in row.conditions and row.quantity in ("energy", "break_even")]
    told = [row for row in told if (row.conditions["accounting"], row.conditions["phase"]) == ("compute", "prefill")]
    codes: dict[str, list[tuple[float, float]]] = {}
    for about in (row.conditions for row in told):
        if about.get("energy_of") == "snn":
            point = about["spikes_per_neuron"], about["perplexity"]
            codes.setdefault(_code(about), []).append(point)
    if not codes:
        return []
    figure, axes = new_figure(4.3)
    colours = {code: LIGHT[_LINES[number % len(_LINES)]] for number, code in enumerate(codes)}
    for code, points in codes.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", color=colours[code], label=code)
    worst = _SHOWN * max(value for points in codes.values() for _, value in points)
    for about, value in ((row.conditions, row.value) for row in told):
        sparse, at = "share" in about, (max(value, 0.0), about["perplexity"])
        if about.get("energy_of") == "ann":
            axes.axhline(at[1], color=LIGHT["dense"], label="dense")
        if at[1] <= worst and "baseline" in about and (sparse or ("bits" in about and "zeros" in about["baseline"])):
            shape, label = ("D", "dense, small inputs skipped") if sparse else ("s", "integers")
            axes.plot(*at, shape, color=colours[_code(about)], label=label, markerfacecolor="none", linestyle="none")
            note(axes, f"{about['share']:.0%}" if sparse else f"{about['bits']} bits", at, (6, 4))
    logarithmic(axes.yaxis)
    axes.set(xlabel="spikes per neuron and window", ylabel="perplexity")
    handles, labels = axes.get_legend_handles_labels()
    first = dict(zip(reversed(labels), reversed(handles), strict=True))
    figure.legend(first.values(), first.keys(), loc="outside lower center", ncols=4)
    return [
        Drawing(
            "spikes",
            "Quality against spikes",
            "Dots: spiking networks. Hollow marks: networks without spikes, at the spikes per neuron at which the "
            "arithmetic of the spiking network of their colour would take as much energy (break-even, compute, "
            "reading); it wins against marks to its right that are not lower. Integer twins leave zeros out.",
            figure,
        )
    ]


def _code(about: Mapping[str, Any]) -> str:
    return f"{about.get('neuron')}, {about.get('coverage')}"


def _comparison(found: Results) -> Drawing:
    figure, (left, right) = new_figure(4.3, 1, 2, sharey=True)
    everything = [point for points in found.curves.values() for point in points]
    priced = all(point.energy is not None for point in everything)
    costs = []
    for number, (label, points) in enumerate(found.curves.items()):
        colour = LIGHT[_LINES[number % len(_LINES)]]
        times = [point.timesteps for point in points]
        left.plot(
            times, [p.value for p in points], marker="o", markersize=4.5, linewidth=1.7, color=colour, label=label
        )
        priced_at = [(p, p.energy / 1e6 if priced and p.energy is not None else p.spikes) for p in points]
        known = [(cost, p.value, p.timesteps) for p, cost in priced_at if cost is not None]
        costs += [(cost, value) for cost, value, _ in known]
        right.plot([c for c, _, _ in known], [v for _, v, _ in known], "o", markersize=4.5, color=colour)
        for cost, value, steps in known:
            # Each line has its own side of the points: others are near.
            across, up = _SIDES[number % len(_SIDES)]
            note(
                right, str(steps), (cost, value), (5 * across, 7 * up), fontsize=7.5, color=colour, va="center",
                ha="left" if across > 0 else "right",
            )  # fmt: skip
    front = pareto(costs, lower=found.score == "perplexity")
    if front:
        right.plot(*zip(*front, strict=True), color=LIGHT["muted"], linewidth=1.1, linestyle=":", zorder=1)
    if found.dense is not None:
        left.axhline(found.dense, color=LIGHT["dense"], linewidth=1.4, label="dense")
        if priced and found.dense_energy is not None:
            right.plot(found.dense_energy / 1e6, found.dense, "s", markersize=8, color=LIGHT["dense"])
            note(right, "dense", (found.dense_energy / 1e6, found.dense), (8, -13))
        else:
            right.axhline(found.dense, color=LIGHT["dense"], linewidth=1.4)
    left.margins(y=0.1)
    right.margins(x=0.1)
    over_time(left, sorted({point.timesteps for point in everything}), found.score)
    unit = "µJ per token, estimated (compute)" if priced else "spikes per neuron and window"
    right.set(xlabel=unit, title=f"Quality against {'energy' if priced else 'spikes'}, with T")
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=min(5, len(found.curves) + 1),
        columnspacing=1.4,
    )  # fmt: skip
    return Drawing(
        "comparison",
        "Methods side by side",
        f"{found.score.capitalize()} of other conversions of the same model. Left: over T. Right: what they "
        "cost, with T at every point; nothing measured here is better and cheaper than the points on the dotted line "
        "(Pareto). Compare systems by levels and spikes, not by T alone. Grey is the dense network.",
        figure,
    )


def pareto(points: Sequence[tuple[float, float]], *, lower: bool) -> list[tuple[float, float]]:
    """Return the points that no other beats in cost and score alike, by cost."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], point[1] if lower else -point[1])):
        if not front or (value < front[-1][1] if lower else value > front[-1][1]):
            front.append((cost, value))
    return front
