"""The figures of a report about one network, each with its title and what one sees in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fas.report.findings import Findings, SiteFinding
from fas.report.theme import LIGHT, ROLES, new_figure


@dataclass(frozen=True)
class Drawing:
    """One figure.

    Attributes:
        name: of its files and of its place in the page.
        title: what it is about.
        caption: what one sees.
        figure: matplotlib's.
    """

    name: str
    title: str
    caption: str
    figure: Any


def network_figures(findings: Findings) -> list[Drawing]:
    """Draw everything about quality, firing, parameters, spikes and errors that was found."""
    parts: Sequence[Callable[[Findings], Drawing | None]] = (
        _quality, _firing, _errors, _thresholds, _initial_potentials, _raster, _exits,
    )  # fmt: skip
    return [drawing for part in parts if (drawing := part(findings)) is not None]


def short(path: str, width: int = 34) -> str:
    """Return a dotted name with its beginning left out where it is long."""
    return path if len(path) <= width else f"…{path[1 - width :]}"


def _quality(findings: Findings) -> Drawing:
    figure, (left, right) = new_figure(3.4, 1, 2)
    dense = findings.at("ann")
    for network, colour, kind, label in (
        ("quantised", "quantised", "--", "quantised network (control)"),
        ("snn", "spiking", "-", "spiking network"),
    ):
        points = sorted((q.timesteps, q.value) for q in findings.quality if q.network == network)
        size = 9 if network == "quantised" else 5
        left.plot(
            *zip(*points, strict=True), kind, marker="o", color=LIGHT[colour], label=label, markersize=size,
            linewidth=1.8, markerfacecolor="none" if network == "quantised" else LIGHT[colour],
        )  # fmt: skip
    steps = sorted({q.timesteps for q in findings.quality if q.timesteps})
    left.set_xscale("log", base=2)
    left.set_xticks(steps, [str(step) for step in steps])
    left.minorticks_off()
    priced = [(q.energy / 1e6, q) for q in findings.quality if q.network == "snn" and q.energy is not None]
    for energy, quality in priced:
        right.scatter([energy], [quality.value], s=42, color=LIGHT["spiking"], zorder=3)
        right.annotate(
            f"T = {quality.timesteps}, {quality.spikes:.2g} spikes", (energy, quality.value),
            textcoords="offset points", xytext=(7, 6), fontsize=8, color=LIGHT["muted"],
        )  # fmt: skip
    right.plot(
        [energy for energy, _ in priced], [q.value for _, q in priced], color=LIGHT["spiking-soft"], linewidth=1.2
    )
    if dense is not None:
        left.axhline(dense, color=LIGHT["dense"], linewidth=1.4, label="dense network")
    estimate = findings.estimates[0]
    phase = estimate.spiking.phases[0]
    cost = estimate.energy(phase, "compute", "ann")
    if dense is not None and cost and not estimate.unpriced(phase, "compute", "ann"):
        right.scatter([cost / 1e6], [dense], s=64, color=LIGHT["dense"], marker="s", zorder=3)
        right.annotate(
            "dense", (cost / 1e6, dense), textcoords="offset points", xytext=(7, -12), fontsize=8, color=LIGHT["muted"]
        )
    right.margins(x=0.25, y=0.15)
    left.set(xlabel="time steps T", ylabel=findings.score, title="Quality over time steps")
    right.set(xlabel=f"µJ per token, estimated ({estimate.prices.name}, compute, FP32)", title="Quality against energy")
    left.legend(loc="best")
    lower = "lower is better" if findings.score == "perplexity" else "higher is better"
    return Drawing(
        "quality",
        "Quality over time, and what it costs",
        f"Left: {findings.score} of the spiking network (blue) when it runs T time steps with the thresholds "
        f"calibrated at T = {findings.timesteps}; {lower}. The grey line is the dense network; orange circles are the "
        "control, the same network with quantised activations of as many levels and no spikes: where both coincide, "
        "running over time costs nothing. Right: the same points against the estimated energy of their arithmetic.",
        figure,
    )


def _bars(count: int) -> float:
    return 0.235 * count + 1.0


def _names(axes: Any, sites: Sequence[SiteFinding]) -> None:
    axes.set_yticks(range(len(sites)), [short(site.path) for site in sites])
    axes.set_ylim(len(sites) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def _logarithmic(axes: Any) -> None:
    """Make the horizontal axis logarithmic, with plain numbers at 1, 2 and 5 times powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _role_legend(axes: Any, sites: Sequence[SiteFinding]) -> None:
    from matplotlib.patches import Patch

    shown = dict.fromkeys(site.role for site in sites)
    handles = [Patch(color=LIGHT[ROLES[role]], label=role.replace("_", " ")) for role in shown]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(handles), borderaxespad=0.2)


def _firing(findings: Findings) -> Drawing:
    sites = findings.sites
    silent = any(site.silent > 0 for site in sites)
    figure, grid = new_figure(
        _bars(len(sites)), 1, 1 + silent, sharey=True, squeeze=False, width_ratios=[3, 1][: 1 + silent]
    )
    axes = grid[0, 0]
    for place, site in enumerate(sites):
        axes.barh(place, site.spikes_per_neuron, height=0.66, color=LIGHT[ROLES[site.role]])
        axes.annotate(
            f" {site.spikes_per_neuron:.2f}", (site.spikes_per_neuron, place), va="center", fontsize=8,
            color=LIGHT["muted"],
        )  # fmt: skip
        if silent:
            grid[0, 1].barh(place, 100 * site.silent, height=0.66, color=LIGHT["dense"])
    _names(axes, sites)
    _role_legend(axes, sites)
    axes.margins(x=0.1)
    axes.set_xlabel(f"spikes per neuron over T = {findings.timesteps} steps")
    if silent:
        grid[0, 1].set_xlim(0, 100)
        grid[0, 1].grid(axis="y", visible=False)
        grid[0, 1].set_xlabel("never fired, % of neurons")
    top = max(sites, key=lambda site: site.spikes_per_neuron)
    return Drawing(
        "firing",
        "How much each site fires",
        f"Mean spikes of a neuron over its whole window, counted; divided by T = {findings.timesteps} it is the firing "
        f"rate. The busiest site is {top.path} with {top.spikes_per_neuron:.2f}. "
        + ("Right: neurons that stayed silent on all of the data." if silent else "No neuron stayed silent."),
        figure,
    )


def _errors(findings: Findings) -> Drawing | None:
    sites = [site for site in findings.sites if site.error is not None]
    if not sites:
        return None
    figure, axes = new_figure(_bars(len(sites)))
    for place, site in enumerate(sites):
        axes.barh(place, 100 * (site.error or 0), height=0.66, color=LIGHT[ROLES[site.role]])
        if site.code_error is not None:
            axes.plot(100 * site.code_error, place, "D", color=LIGHT["ink"], markersize=4, markerfacecolor="none")
    _names(axes, sites)
    _role_legend(axes, sites)
    _logarithmic(axes)
    axes.set_xlabel("error of the output, % of the dense output's variance (diamond: error of the site's code alone)")
    worst = max(sites, key=lambda site: site.error or 0)
    return Drawing(
        "errors",
        "Where the spiking network leaves the dense one",
        "Bars: squared difference between the outputs of a layer in the whole spiking network and in the dense one, in "
        "percent of the dense output's variance; errors of earlier layers are in it. Diamonds: what the site's own "
        f"spikes lost on the calibration data. The largest error, {100 * (worst.error or 0):.2g} %, is at "
        f"{worst.path}.",
        figure,
    )


def _spread(axes: Any, place: float, values: torch.Tensor, colour: str) -> None:
    """Draw the middle 90 % thin, the middle half thick, and the median."""
    low, first, middle, third, high = torch.quantile(values, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist()
    axes.plot([low, high], [place, place], color=LIGHT[colour], linewidth=1.2, alpha=0.8, solid_capstyle="round")
    axes.plot([first, third], [place, place], color=LIGHT[colour], linewidth=5.5, solid_capstyle="round")
    axes.plot(middle, place, "o", color="white", markersize=2.6, zorder=4)


def _thresholds(findings: Findings) -> Drawing:
    sites = findings.sites
    figure, axes = new_figure(_bars(len(sites)))
    for place, site in enumerate(sites):
        _spread(axes, place, site.threshold, ROLES[site.role])
        if site.coarse is not None:
            axes.plot(site.coarse, place, "|", color=LIGHT["ink"], markersize=13, markeredgewidth=1.6)
    _names(axes, sites)
    _role_legend(axes, sites)
    _logarithmic(axes)
    axes.set_xlabel("threshold θ, in the unit of the activation")
    before = " The upright stroke is the one threshold of the layer before that, after coarse calibration alone."
    has_coarse = any(site.coarse is not None for site in sites)
    return Drawing(
        "thresholds",
        "Thresholds before and after fine calibration",
        "Each site's thresholds over its channels: the middle half thick, the middle 90 % thin, the median white."
        + (before if has_coarse else " Thresholds before calibration were not fitted again."),
        figure,
    )


def _initial_potentials(findings: Findings) -> Drawing | None:
    sites = findings.sites
    values = torch.cat([site.v_init for site in sites])
    if bool((values == values[0]).all()):
        return None
    figure, axes = new_figure(_bars(len(sites)))
    for place, site in enumerate(sites):
        _spread(axes, place, site.v_init, ROLES[site.role])
    axes.axvline(0.5, color=LIGHT["muted"], linewidth=1, linestyle="--")
    _names(axes, sites)
    _role_legend(axes, sites)
    axes.set_xlabel("initial membrane potential v₀ / θ")
    return Drawing(
        "initial-potentials",
        "Initial membrane potentials after calibration",
        "All start at one half of the threshold (dashed), which rounds to the nearest level; calibration moves them "
        "channel by channel. Marks as for the thresholds.",
        figure,
    )


def _raster(findings: Findings) -> Drawing | None:
    if not findings.rasters:
        return None
    from matplotlib.patches import PathPatch

    rasters = findings.rasters
    figure, grid = new_figure(1.75 * len(rasters) + 0.5, len(rasters), 1, squeeze=False, sharex=True)
    for axes, raster in zip(grid[:, 0], rasters, strict=True):
        axes.add_patch(PathPatch(_ticks(raster.spikes), color=LIGHT["spiking"], linewidth=1.5, fill=False))
        for edge in range(0, len(raster.spikes) + 1, raster.timesteps):
            axes.axvline(edge, color=LIGHT["grid"], linewidth=0.8, zorder=0)
        axes.set_xlim(0, len(raster.spikes))
        axes.set_ylim(-1, raster.spikes.shape[1])
        axes.grid(visible=False)
        axes.set_yticks([])
        axes.set_title(f"{short(raster.path, 60)}: {raster.spikes.shape[1]} of {raster.neurons} neurons", fontsize=8.5)
    steps = rasters[0].timesteps
    count = len(rasters[0].spikes) // steps
    grid[-1, 0].set_xticks([steps * (i + 0.5) for i in range(count)], [str(i + 1) for i in range(count)])
    grid[-1, 0].tick_params(axis="x", length=0)
    grid[-1, 0].set_xlabel(f"position, {steps} time steps each")
    return Drawing(
        "raster",
        "Spike trains",
        f"Every spike of some neurons of three sites while the network reads {count} positions: one row per neuron, "
        f"{steps} time steps between two lines. Graded spikes and spikes of both signs are shown alike.",
        figure,
    )


def _ticks(spikes: torch.Tensor) -> Any:
    """Return one path with an upright stroke per spike: far smaller in a file than as many marks."""
    from matplotlib.path import Path

    times, neurons = (index.numpy() for index in spikes.nonzero(as_tuple=True))
    ends = np.stack([np.stack([times + 0.5, neurons - 0.4], 1), np.stack([times + 0.5, neurons + 0.4], 1)], 1)
    return Path(ends.reshape(-1, 2), [Path.MOVETO, Path.LINETO] * len(times))


def _exits(findings: Findings) -> Drawing | None:
    if not findings.exits:
        return None
    figure, (left, right) = new_figure(2.9, 1, 2)
    margins = [exit_.margin for exit_ in findings.exits]
    left.plot(margins, [e.mean_steps for e in findings.exits], color=LIGHT["spiking"], linewidth=2)
    steps, same = [e.mean_steps for e in findings.exits], [100 * e.same for e in findings.exits]
    right.plot(steps, same, color=LIGHT["green"], marker="o", markersize=3.5, linewidth=1.6)
    left.axhline(findings.timesteps, color=LIGHT["dense"], linewidth=1.2)
    left.set_ylim(0, findings.timesteps * 1.08)
    right.set_xlim(0, findings.timesteps * 1.05)
    left.set(xlabel="margin, lead in logits", ylabel="mean time steps", title="Time")
    right.set(xlabel="mean time steps", ylabel="answers unchanged, %", title="Answers")
    return Drawing(
        "early-exit",
        "Stopping early",
        "Online, the network has an answer after every step, and the steps of a position may end once the best logit "
        f"leads the second by a margin. Left: how many steps that takes, of T = {findings.timesteps} (grey). Right: "
        "share of positions whose answer is the one that all steps give.",
        figure,
    )
