"""Pictures of the concepts, computed by the library: what they show is what its neurons do.

``python docs/pictures.py FOLDER`` writes them as SVG.
"""

import sys
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure

from fas.neurons.phase import Phase
from fas.neurons.signed_if import SignedIF
from fas.neurons.soft_reset_if import SoftResetIF
from fas.neurons.ternary_phase import TernaryPhase
from fas.types import RateNeuron

BLUE, ORANGE, GREY = "#2b6cb0", "#c05621", "#8a8f98"


def run(neuron: RateNeuron, current: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return membrane potential and spikes [T] of one neuron with threshold 1, step by step by its definition."""
    steps = len(current)
    potential, count = torch.tensor([0.5]), torch.zeros(1)
    potentials, spikes = [], []
    for x in current:
        spike, potential = neuron.step(x.view(1), potential, count, torch.ones(1), steps)
        count = count + spike
        potentials.append(potential.item())
        spikes.append(spike.item())
    return torch.tensor(potentials), torch.tensor(spikes)


def dynamics() -> Figure:
    """An integrate-and-fire neuron over eight steps: potential, threshold, spikes, and what the count says."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, current, title in (
        (axes[0], torch.full((8,), 0.4), "even input 0.4: 3 spikes of 8"),
        (axes[1], torch.tensor([1.4, 0.9, -0.6, -0.5, 0.0, 0.2, 0.1, 0.1]), "uneven input: one is taken back"),
    ):
        potential, spikes = run(SignedIF(), current)
        time = torch.arange(1, 9)
        axis.axhline(1, color=GREY, linestyle="--", linewidth=1)
        axis.step(time, potential, where="mid", color=BLUE, label="membrane potential v")
        axis.vlines(time[spikes != 0], 0, spikes[spikes != 0], color=ORANGE, linewidth=3, label="spikes")
        axis.set(title=title, xlabel="time step", ylim=(-1.3, 1.5))
        axis.text(8.3, 1.03, "θ", color=GREY)
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def staircase() -> Figure:
    """QCFS with L = 4, and the count of a soft-reset neuron over four steps of the same input."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = torch.linspace(-0.4, 1.4, 721)
    counts = SoftResetIF().window(x[:, None], torch.tensor([0.5]), 4)[-1, :, 0]
    left.plot(x, x.clamp(0, 1), color=GREY, linewidth=1, label="clip(x, 0, θ)")
    left.plot(x, (4 * x + 0.5).floor().clamp(0, 4) / 4, color=BLUE, linewidth=4, alpha=0.4, label="QCFS, L = 4")
    left.plot(x, counts / 4, color=ORANGE, linewidth=1.2, label="spikes × θ/T, T = 4")
    left.set(title="the neuron is the quantiser", xlabel="x / θ", ylabel="output / θ")
    left.legend(frameon=False, fontsize=8)
    for neuron, colour, label in (
        (SignedIF(), GREY, "signed_if: 9 levels"),
        (Phase(), BLUE, "phase: 31"),
        (TernaryPhase(), ORANGE, "ternary_phase: 81"),
    ):
        resolution, bounds = neuron.resolution(4), neuron.bounds(4)
        y = torch.linspace(-1, 1, 2001)
        sent = (y * resolution + 0.5).floor().clamp(*bounds) / resolution
        right.plot(y, sent - y, color=colour, linewidth=1.2 if colour != GREY else 1, label=label)
    right.set(title="error of the codes at T = 4", xlabel="x / θ", ylabel="error / θ", ylim=(-0.16, 0.24))
    right.legend(frameon=False, fontsize=8, loc="upper right", ncols=1)
    return figure


def codes() -> Figure:
    """The spikes that three codes send over four steps for the same values."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    values = torch.linspace(-1, 1, 21)
    for axis, (neuron, title) in zip(
        figure.subplots(1, 3, sharey=True),
        ((SignedIF(), "signed_if (rate)"), (Phase(), "phase (binary digits)"), (TernaryPhase(), "ternary_phase")),
        strict=True,
    ):
        counts = neuron.window(values[:, None], torch.tensor([0.5]), 4)[..., 0]
        spikes = torch.diff(counts, dim=0, prepend=torch.zeros(1, len(values))).sign()
        for sign, colour in ((1, BLUE), (-1, ORANGE)):
            step, value = torch.nonzero(spikes == sign, as_tuple=True)
            axis.scatter(step + 1, values[value], marker="|", s=60, linewidths=2.5, color=colour)
        axis.set(title=title, xlabel="time step", xticks=range(1, 5), xlim=(0.5, 4.5))
    figure.axes[0].set_ylabel("x / θ")
    return figure


def draw_all(folder: Path) -> None:
    """Write every picture as SVG, the same bytes each time."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(
        {
            "svg.hashsalt": "fas",
            "font.size": 9,
            "axes.titlesize": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        for draw in (dynamics, staircase, codes):
            draw().savefig(folder / f"{draw.__name__}.svg", metadata={"Date": None})


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))
