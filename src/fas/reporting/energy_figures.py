"""The figures of a report about energy: bills by accounting, and when spiking pays."""

from __future__ import annotations

from typing import Any

from fas.energy.estimate import ACCOUNTINGS, Accounting, Estimate
from fas.energy.sensitivity import sensitivity
from fas.reporting.findings import Findings
from fas.reporting.theme import LIGHT, PAGE, Drawing, named_rows, new_figure, note

_GROUPS = {
    "driven by spikes": ("spiking", ("additions", "graded multiply-adds", "resets")),
    "membrane potentials": ("violet", ("membrane updates", "membrane potentials", "input currents")),
    "dense layers": ("dense", ("multiply-adds after the sites",)),
    "weights": ("quantised", ("weights",)),
    "accumulators": ("rose", ("accumulators",)),
    "events, activations": ("green", ("events", "activations", "inputs read again", "maps read again")),
    "the same in all networks": ("sand", (
        "other multiply-adds", "multiplications", "float additions", "evaluations", "other operands",
        "other accumulators",
    )),
}  # fmt: skip

# Changes that are drawn, in accountings that know every network.
_SWINGS = 10
_PRICED: tuple[Accounting, ...] = ("compute", "memory")


def energy_figures(findings: Findings) -> list[Drawing]:
    """Draw the bills of the first cost model, the break-even points, and what the verdict hangs on."""
    found = findings.estimates[0]
    if found.unpriced(_phase(found), "compute", "ann"):
        return []
    return [_bill(found), _break_even(found), _tornado(found)]


def _phase(found: Estimate) -> Any:
    """Return decoding where there is any: it is what a language model does most of the time."""
    return found.spiking.phases[-1]


def _bill(found: Estimate) -> Drawing:
    phase = _phase(found)
    figure, grid = new_figure(3.1, 1, 3, sharey=True, width_ratios=[1, 1.25, 1.25])
    for axes, accounting in zip(grid, ACCOUNTINGS, strict=True):
        for place, network in enumerate(found.names):
            total = found.energy(phase, accounting, network)
            if total is None:
                axes.annotate(" not defined", (0, place), va="center", fontsize=8, color=LIGHT["muted"])
                continue
            at = 0.0
            for colour, items in _GROUPS.values() if accounting != "paper" else ():
                part = sum(
                    line.energy
                    for line in found.bill(phase, network)
                    if line.item in items and (accounting == "memory" or not line.memory)
                )
                axes.barh(place, part / 1e6, left=at / 1e6, height=0.66, color=LIGHT[colour])
                at += part
            if accounting == "paper":
                axes.barh(place, total / 1e6, height=0.66, color=LIGHT["spiking" if network == "snn" else "dense"])
            axes.annotate(f" {total / 1e6:.3g}", (total / 1e6, place), va="center", fontsize=8, color=LIGHT["ink"])
        axes.set_title({"paper": "as in papers", "compute": "compute", "memory": "with memory and events"}[accounting])
        axes.set_xlabel("µJ per token")
        axes.margins(x=0.2)
        axes.grid(axis="y", visible=False)
    named_rows(grid[0], list(found.names.values()))
    from matplotlib.patches import Patch

    handles = [Patch(color=LIGHT[colour], label=label) for label, (colour, _) in _GROUPS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, handlelength=1, columnspacing=1.2)
    return Drawing(
        "energy",
        "Energy by accounting",
        f"Estimated from counted operations of {phase} with {found.prices.title}. As in papers: additions of spikes "
        "(0.9 pJ) against multiply-adds (4.6 pJ) of the same layers, nothing else. Compute: all arithmetic. Memory: "
        f"weights (kept for: {found.hardware.reuse}), accumulators (order {found.hardware.order}), membrane potentials "
        "and events too. The fair comparison is the integer twin, which has the same levels in "
        f"{found.activation_bits} bits, beside the INT8 spiking one.",
        figure,
    )


def _break_even(found: Estimate) -> Drawing:
    phase = _phase(found)
    fires = found.spikes_per_neuron(phase)
    rows = [
        (f"{found.names[baseline]}, {accounting}", point)
        for accounting in ACCOUNTINGS
        for baseline in found.baselines
        if (point := found.break_even(phase, accounting, baseline)) is not None
    ]
    figure, axes = new_figure(0.25 * len(rows) + 1.0)
    for place, (_, point) in enumerate(rows):
        wins = fires < point
        shown = max(point, 0.0)
        axes.plot([0, shown], [place, place], color=LIGHT["spiking-soft"], linewidth=6, solid_capstyle="butt", zorder=1)
        axes.plot(shown, place, "o", color=LIGHT["green" if wins else "rose"], markersize=8, zorder=3)
        text = "never" if point <= 0 else f"{point:.3g}, {'wins' if wins else 'loses'}"
        ground = {"facecolor": PAGE["card"][0], "edgecolor": "none", "pad": 1.0}
        note(axes, text, (shown, place), (9, 0), va="center", bbox=ground)
    axes.axvline(fires, color=LIGHT["ink"], linewidth=1.4)
    note(axes, f"it fires {fires:.3g}", (fires, -0.8), (5, 0), fontsize=8.5, color=LIGHT["ink"], va="bottom")
    named_rows(axes, [label for label, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -1.3)
    axes.set_xlim(left=0)
    axes.margins(x=0.18)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("spikes per neuron and window")
    won = sum(fires < point for _, point in rows)
    return Drawing(
        "break-even",
        "When does the spiking network win?",
        "Below so many spikes per neuron and window the spiking network takes less energy than the network named, in "
        f"the accounting named. It fires {fires:.3g} times (upright line) and wins {won} of {len(rows)} comparisons. "
        "What spikes cause is thought to grow in proportion to them.",
        figure,
    )


def _tornado(found: Estimate) -> Drawing:
    phase, names = _phase(found), _PRICED
    swings = [sensitivity(found, phase, accounting, found.fair)[:_SWINGS] for accounting in names]
    figure, grid = new_figure(0.25 * max(map(len, swings)) + 1.0, 1, 2)
    for axes, accounting, shown in zip(grid, names, swings, strict=True):
        for place, swing in enumerate(shown):
            for end, colour in ((swing.half, "quantised"), (swing.double, "spiking")):
                if end is not None:
                    axes.barh(place, end - swing.ratio, left=swing.ratio, height=0.66, color=LIGHT[colour])
        ratio = shown[0].ratio if shown else 1.0
        axes.axvline(ratio, color=LIGHT["ink"], linewidth=1.4)
        axes.axvline(1.0, color=LIGHT["rose"], linewidth=1.4)
        named_rows(axes, [swing.name.replace("_", " ") for swing in shown])
        axes.set_title(f"{accounting}: {ratio:.3g}")
        axes.set_xlabel("spiking over the twin")
        axes.grid(axis="y", visible=False)
    return Drawing(
        "sensitivity",
        "What does the verdict hang on?",
        f"Energy of the INT8 spiking network over that of the {found.names[found.fair]}, {phase}: each price halved "
        "and doubled, and other choices of order, reuse and accumulators, the widest swings first. Left of the second "
        "line (1.0) spikes win.",
        figure,
    )
