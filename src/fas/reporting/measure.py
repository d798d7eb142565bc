"""Measuring what a report shows. Every function leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fas.calibration.teacher import neuron_tensors
from fas.energy.estimate import Estimate, counts_of, levels_of
from fas.recording import record
from fas.reporting.findings import Exit, Quality, Raster, SiteFinding
from fas.stages.calibrate import Calibrate
from fas.surgery.parameters import swapped
from fas.surgery.probe import evaluating, hooked
from fas.surgery.replace import populations, spiking_layers
from fas.types import Progress

Batch = Mapping[str, Tensor]
# 200 MB in float32.
_MOST_LOGITS = 50_000_000
Score = Callable[[], float]


def quality_over_time(
    model: Any, score: Score, steps: Sequence[int], batches: Sequence[Batch], estimate: Estimate
) -> list[Quality]:
    """Score the spiking network and its quantised twin at several T, and the dense network.

    Thresholds stay those of the model's own T.
    """
    simulation, neuron = model.simulation, populations(model)[model.sites[0].path].neuron
    reading = estimate.spiking.phases[0]
    cost = None if estimate.unpriced(reading, "compute", "ann") else estimate.energy(reading, "compute", "ann")
    with simulation.using(network="ann"):
        found = [Quality("ann", 0, score(), energy=cost)]
    for step in steps:
        with simulation.using(timesteps=step, levels=neuron.resolution(step)):
            with simulation.using(network="quantised"):
                found.append(Quality("quantised", step, score()))
            with simulation.using(network="snn"):
                value = score()
                counts = counts_of(model, batches)
            now = replace(estimate, spiking=counts, levels=levels_of(model))
            phase = counts.phases[0]
            energy = now.energy(phase, "compute", "snn")
            found.append(Quality("snn", step, value, now.spikes_per_neuron(phase), energy))
    return found


def site_findings(model: Any, batches: Sequence[Batch], coarse: Mapping[str, float] | None = None) -> list[SiteFinding]:
    """Return firing, parameters and errors of every site."""
    with record(model) as spikes, model.simulation.using(network="snn"), evaluating(model):
        for batch in batches:
            model(**batch)
    errors = output_errors(model, batches[0])
    recorded = {path: figures for entry in model.records for path, figures in entry.sites.items()}
    found = []
    for site in model.sites:
        population, seen = populations(model)[site.path], spikes.sites.get(site.path)
        if seen is None:
            continue
        behind = [errors[path] for path in site.layers if path in errors]
        found.append(
            SiteFinding(
                site.path,
                site.role,
                seen.spikes_per_neuron,
                float(seen.silent.double().mean()) if seen.silent is not None else 0.0,
                _channels(population.threshold),
                _channels(population.v_init),
                _channels(population.offset / population.threshold),
                (coarse or {}).get(site.path),
                sum(behind) / len(behind) if behind else None,
                recorded.get(site.path, {}).get("relative_error"),
            )
        )
    return found


def _channels(values: Tensor) -> Tensor:
    # A copy: what is found stays as it is when the model changes.
    return values.detach().reshape(-1).float().cpu().clone()


def coarse_thresholds(model: Any, batches: Sequence[Batch], progress: Progress | None = None) -> dict[str, float]:
    """Return the one threshold that each layer would have after coarse calibration alone."""
    with swapped({parameter: parameter.detach().clone() for parameter in neuron_tensors(model)}):
        for layer in spiking_layers(model).values():
            # A part of fine calibration.
            layer.correction.data.zero_()
        Calibrate(coarse=True, fine=False).run(model, batches, progress)
        found = {path: float(p.threshold.detach().mean()) for path, p in populations(model).items()}
    model.reset()
    return found


def output_errors(model: Any, batch: Batch) -> dict[str, float]:
    """Return the error of every spiking layer's output in the whole network, by layer.

    Σ (spiking − dense)² / Σ (dense − its mean by channel)² on the same batch: 0 is the dense network, 1 its mean.
    """
    dense, spiking = _outputs(model, batch, "ann"), _outputs(model, batch, "snn")
    errors = {}
    for path, target in dense.items():
        power = (target - target.mean(0)).square().sum().clamp_min(1e-20)
        found = spiking[path]
        if len(found) != len(target):
            found = model.simulation.after_window(found.unflatten(0, (model.timesteps, len(target))))
        errors[path] = float((found - target).square().sum() / power)
    return errors


def _outputs(model: Any, batch: Batch, network: str) -> dict[str, Tensor]:
    """Return the output of every spiking layer as rows [n, C], float64; online T·n rows, time-major."""
    seen: dict[str, Tensor] = {}

    def keep(path: str, _: nn.Module, arguments: Any, output: Tensor) -> None:
        seen[path] = output.detach().double().flatten(0, -2)

    hooks = hooked([layer.register_forward_hook(partial(keep, path)) for path, layer in spiking_layers(model).items()])
    with hooks, model.simulation.using(network=network), evaluating(model):
        model(**batch)
    return seen


def agreement(model: Any, batch: Batch) -> float:
    """Return the share of answers where spiking and dense network find the same class or token most likely."""
    found = []
    for network in ("ann", "snn"):
        with model.simulation.using(network=network), evaluating(model):
            found.append(model(**batch).logits.argmax(-1))
    return float((found[0] == found[1]).double().mean())


def rasters(model: Any, batch: Batch, *, neurons: int = 48, positions: int = 12) -> list[Raster]:
    """Return real spike trains of the first, a middle and the last site, of one row of a batch."""
    sites = [model.sites[i] for i in sorted({0, len(model.sites) // 2, len(model.sites) - 1})]
    row = {name: value[:1] for name, value in batch.items()}
    with record(model, trains=True) as spikes, model.simulation.using(network="snn"), evaluating(model):
        model(**row)
    found = []
    for site in sites:
        # [T, *B, C] with the positions before the last dimension.
        train = spikes.sites[site.path].trains[0].flatten(1, -2)[:, :positions]
        chosen = torch.linspace(0, train.shape[-1] - 1, min(neurons, train.shape[-1])).round().long()
        shown = train[..., chosen].transpose(0, 1).flatten(0, 1)
        found.append(Raster(site.path, shown, len(train), train.shape[-1]))
    return found


def early_exits(model: Any, batch: Batch, margins: Sequence[float], *, positions: int = 128) -> list[Exit]:
    """Return how many steps a position takes, and how many answers stay, by the margin of early exit.

    Every position stops by itself here, after others that ran all their steps; ``Anytime`` holds what stopped
    positions leave for later ones.

    Returns:
        One entry per margin, empty where a network cannot exit early (codes without an online schedule).
    """
    if any(p.neuron.emission == "digits" for p in populations(model).values()):
        return []
    classes = model.config.get_text_config().vocab_size
    positions = max(1, min(positions, _MOST_LOGITS // (classes * model.timesteps)))
    row = {name: value[:1, :positions] for name, value in batch.items()}
    with model.simulation.using(network="snn", schedule="online", operators="difference"), evaluating(model):
        logits = model.logits_per_step(**row).flatten(1, -2)
    best = logits.topk(2, dim=-1)
    lead, answers = best.values[..., 0] - best.values[..., 1], best.indices[..., 0]
    found = []
    for margin in margins:
        enough = lead >= margin
        enough[-1] = True
        step = enough.int().argmax(0)
        same = answers.gather(0, step.unsqueeze(0))[0] == answers[-1]
        found.append(Exit(margin, float((step + 1).double().mean()), float(same.double().mean())))
    return found
