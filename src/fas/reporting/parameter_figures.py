"""The figures of a report about what calibration sets: thresholds, initial potentials, bias currents."""

from __future__ import annotations

from typing import Any

import torch

from fas.reporting.drawing import Drawing, height, logarithmic, named_rows, role_legend
from fas.reporting.findings import Findings
from fas.reporting.theme import LIGHT, ROLES, new_figure

_MARKS = "The middle half of a site's channels is thick, the middle 90 % thin, the median a dot"


def parameter_figures(findings: Findings) -> list[Drawing]:
    """Draw thresholds and potentials before and after fine calibration."""
    return [_thresholds(findings), _potentials(findings)]


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
    named_rows(axes, [site.path for site in sites])
    role_legend(figure, sites)
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
    named_rows(grid[0, 0], [site.path for site in sites])
    role_legend(figure, sites)
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
