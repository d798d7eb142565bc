"""The figures of a report about one network, each with its title and what one sees in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fas.reporting.findings import Findings
from fas.reporting.theme import (
    LIGHT,
    ROLES,
    Drawing,
    height,
    logarithmic,
    new_figure,
    note,
    over_time,
    short,
    site_rows,
)  # fmt: skip

_MARKS = "The middle half of a site's channels is thick, the middle 90 % thin, the median a dot"


def network_figures(findings: Findings) -> list[Drawing]:
    """Draw everything about quality, firing, parameters, spikes, errors and early exit that was found."""
    parts: Sequence[Callable[[Findings], Drawing | None]] = (
        _quality, _firing, _errors, _thresholds, _potentials, _raster, _exits,
    )  # fmt: skip
    return [drawing for part in parts if (drawing := part(findings)) is not None]


def _quality(findings: Findings) -> Drawing:
    figure, (left, right) = new_figure(3.5, 1, 2)
    dense = findings.at("ann")
    for network, colour, kind, label in (
        ("snn", "spiking", "-", "spiking network"),
        ("quantised", "quantised", "--", "quantised network"),
    ):
        points = sorted((q.timesteps, q.value) for q in findings.quality if q.network == network)
        size, filled = (9, "none") if network == "quantised" else (5, LIGHT[colour])
        left.plot(
            *zip(*points, strict=True), kind, marker="o", color=LIGHT[colour], label=label, markersize=size,
            linewidth=1.8, markerfacecolor=filled, markeredgewidth=1.6,
        )  # fmt: skip
    if dense is not None:
        left.axhline(dense, color=LIGHT["dense"], linewidth=1.4, label="dense network")
    steps = sorted({q.timesteps for q in findings.quality if q.timesteps})
    left.margins(y=0.12)
    over_time(left, steps, findings.score)
    _energies(findings, right, dense)
    if findings.score == "perplexity":
        logarithmic(right.yaxis)
    estimate = findings.estimates[0]
    right.set(xlabel=f"µJ per token, estimated ({estimate.prices.name}, compute, FP32)", title="Quality against energy")
    left.legend(loc="best")
    lower = "lower is better" if findings.score == "perplexity" else "higher is better"
    calibrated = f"calibrated at T = {findings.timesteps}"
    return Drawing(
        "quality",
        "Quality over time, and what it costs",
        f"Left: {findings.score} of the spiking network (blue) when it runs T time steps with thresholds {calibrated}; "
        f"{lower}. The grey line is the dense network; orange circles are the same network with quantised "
        "activations of as many levels and no spikes: where both coincide, running over time costs nothing. Right: the "
        "same points against the estimated energy of their arithmetic.",
        figure,
    )


def _energies(findings: Findings, axes: Any, dense: float | None) -> None:
    """Draw score against energy, with T and spikes at every point, and the dense network."""
    priced = sorted(
        (q.timesteps, q.energy / 1e6, q.value, q.spikes)
        for q in findings.quality
        if q.network == "snn" and q.energy is not None
    )
    points = [(energy, value) for _, energy, value, _ in priced]
    axes.plot(*zip(*points, strict=True), color=LIGHT["spiking-soft"], linewidth=1.2)
    for (steps, _, _, spikes), point in zip(priced, points, strict=True):
        axes.scatter(*point, s=42, color=LIGHT["spiking"], zorder=3)
        note(axes, f"T = {steps}, {spikes:.2g} spikes", point, (7, 7))
    cost = next((q.energy for q in findings.quality if q.network == "ann"), None)
    if dense is not None and cost:
        axes.scatter([cost / 1e6], [dense], s=64, color=LIGHT["dense"], marker="s", zorder=3)
        note(axes, "dense", (cost / 1e6, dense), (0, -15), ha="center")
    axes.margins(x=0.25, y=0.18)


def _firing(findings: Findings) -> Drawing:
    sites = findings.sites
    silent = any(site.silent > 0 for site in sites)
    figure, grid = new_figure(
        height(len(sites)), 1, 1 + silent, sharey=True, squeeze=False, width_ratios=[3, 1][: 1 + silent]
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
    site_rows(figure, axes, sites)
    axes.margins(x=0.1)
    axes.set_xlabel(f"spikes per neuron over T = {findings.timesteps} steps")
    rate = axes.secondary_xaxis(
        "top", functions=(lambda count: count / findings.timesteps, lambda share: share * findings.timesteps)
    )
    rate.set_xlabel("firing rate, spikes per neuron and step")
    rate.spines["top"].set_visible(False)
    if silent:
        grid[0, 1].set_xlim(0, 100)
        grid[0, 1].grid(axis="y", visible=False)
        grid[0, 1].set_xlabel("never fired, % of neurons")
    top = max(sites, key=lambda site: site.spikes_per_neuron)
    return Drawing(
        "firing",
        "How much each site fires",
        f"Mean spikes of a neuron over its whole window, counted (below); divided by T = {findings.timesteps} it is "
        f"the firing rate (above). The busiest site is {top.path} with {top.spikes_per_neuron:.2f}. "
        + ("Right: neurons that stayed silent on all of the data." if silent else "No neuron stayed silent."),
        figure,
    )


def _errors(findings: Findings) -> Drawing | None:
    sites = [site for site in findings.sites if site.error is not None]
    if not sites:
        return None
    figure, axes = new_figure(height(len(sites)))
    for place, site in enumerate(sites):
        axes.barh(place, 100 * (site.error or 0), height=0.66, color=LIGHT[ROLES[site.role]])
        if site.code_error is not None:
            axes.plot(100 * site.code_error, place, "D", color=LIGHT["ink"], markersize=4, markerfacecolor="none")
    site_rows(figure, axes, sites)
    logarithmic(axes.xaxis)
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
    lossless = next((e for e in findings.exits if e.same == 1), findings.exits[-1])
    right.plot(
        lossless.mean_steps, 100 * lossless.same, "o", color=LIGHT["green"], markersize=9, markerfacecolor="none"
    )
    note(right, f"margin {lossless.margin:g}", (lossless.mean_steps, 100 * lossless.same), (-2, -16), ha="right")
    left.set(xlabel="margin, lead in logits", ylabel="mean time steps", title="Time")
    right.set(xlabel="mean time steps", ylabel="answers unchanged, %", title="Answers")
    return Drawing(
        "early-exit",
        "Stopping early",
        "Online, the network has an answer after every step, and the steps of a position may end once the best logit "
        f"leads the second by a margin. Left: how many steps that takes, of T = {findings.timesteps} (grey). Right: "
        f"share of positions whose answer is the one that all steps give; from margin {lossless.margin:g} on it is "
        f"{100 * lossless.same:.3g} %, in {lossless.mean_steps:.3g} steps.",
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
    figure, axes = new_figure(height(len(sites)))
    for place, site in enumerate(sites):
        _spread(axes, place, site.threshold, ROLES[site.role])
        if site.coarse is not None:
            axes.plot(site.coarse, place, "|", color=LIGHT["ink"], markersize=13, markeredgewidth=1.6)
    site_rows(figure, axes, sites)
    logarithmic(axes.xaxis)
    axes.set_xlabel("threshold θ, in the unit of the activation")
    before = " The upright stroke is the one threshold of the layer before that, after coarse calibration alone."
    has_coarse = any(site.coarse is not None for site in sites)
    return Drawing(
        "thresholds",
        "Thresholds before and after fine calibration",
        f"{_MARKS}." + (before if has_coarse else " Thresholds before calibration were not fitted again."),
        figure,
    )


def _potentials(findings: Findings) -> Drawing:
    sites = findings.sites
    still = all(bool((site.v_init == 0.5).all()) for site in sites)
    centred = any(bool((site.offset != 0).any()) for site in sites)
    figure, grid = new_figure(height(len(sites)), 1, 1 + centred, sharey=True, squeeze=False)
    for place, site in enumerate(sites):
        _spread(grid[0, 0], place, site.v_init, ROLES[site.role])
        if centred:
            _spread(grid[0, 1], place, site.offset, ROLES[site.role])
    grid[0, 0].axvline(0.5, color=LIGHT["ink"], linewidth=1.2, linestyle="--")
    grid[0, 0].set_xlim(-0.04, 1.04)
    grid[0, 0].set_xlabel("initial membrane potential v₀ / θ")
    if centred:
        grid[0, 1].axvline(0, color=LIGHT["ink"], linewidth=1.2, linestyle="--")
        grid[0, 1].set_xlabel("bias current μ / θ")
        grid[0, 1].grid(axis="y", visible=False)
    site_rows(figure, grid[0, 0], sites)
    after = (
        "Calibration has left all of them there"
        if still
        else "Calibration moves them channel by channel, and with them where rounding begins"
    )
    beside = (
        "; what it moves instead, or as well, is the bias current μ in front of a neuron (right, 0 before), which "
        "puts the levels where the activation is."
        if centred
        else "."
    )
    return Drawing(
        "initial-potentials",
        "Initial membrane potentials before and after calibration",
        f"All start at one half of the threshold (dashed), which rounds to the nearest level. {after}{beside} "
        f"{_MARKS}.",
        figure,
    )
