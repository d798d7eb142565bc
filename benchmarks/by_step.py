"""What a converted classifier knows after each time step: its accuracy, and how far its firing rates have come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fas.layers.population import Population
from fas.surgery.probe import evaluating
from fas.surgery.replace import populations
from fas.training.descent import inputs_of
from fas.training.rates import rates


def accuracy_by_step(model: Any, batches: Sequence[Mapping[str, Tensor]]) -> list[float]:
    """Return how often the largest logit is at the label after each of the steps 1…T of one run.

    Where neither thresholds nor potentials depend on T, entry t − 1 is the accuracy of the network at T = t.

    Args:
        model: a converted model, set to its spiking network in the online schedule.
        batches: inputs of its forward by name, with ``labels`` [B].

    Raises:
        ValueError: a model that has no answer at every step.
    """
    right = torch.zeros(model.timesteps, dtype=torch.int64)
    with evaluating(model), torch.no_grad():
        for batch in batches:
            best = model.logits_per_step(**inputs_of(batch)).argmax(-1)
            right += (best == batch["labels"].to(best.device)).sum(1).cpu()
    total = sum(len(batch["labels"]) for batch in batches)
    shares: list[float] = (right.double() / total).tolist()
    return shares


def fit_curve(model: Any, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, list[float]]:
    """Return K(l, t) = ‖r̂_l(t) − r_l‖² / ‖r_l‖² of every site for t = 1…T.

    r̂_l(t) is the firing rate up to step t in the spiking network, r_l = clip(ReLU(x)/θ, 0, 1) that of the network
    of rates; norms are taken over all neurons and samples.

    Args:
        model: a converted model in the online schedule, thresholds set.
        batches: inputs of its forward.

    Raises:
        ValueError: the layerwise schedule, which has no rates in between.

    Source: Ding et al. 2021 (arXiv 2105.11654), the fit between activation and firing rate.
    """
    simulation = model.simulation
    if simulation.schedule != "online":
        raise ValueError(
            f"the fit curve needs rates at every step: set model.schedule = 'online', not {model.schedule!r}"
        )
    steps = simulation.timesteps
    distance = {path: torch.zeros(steps, dtype=torch.float64) for path in populations(model)}
    power = dict.fromkeys(distance, 0.0)
    with evaluating(model):
        for batch in batches:
            with rates(model, lambda population: population.threshold) as seen:
                model(**inputs_of(batch))
            sent = _sent(model, batch)
            for population, rate in seen.items():
                means = sent[population].unflatten(0, (steps, -1)).double() / population.threshold.double()
                if simulation.operators == "instant":
                    means = means.cumsum(0) / torch.arange(1, steps + 1).view(-1, *[1] * (means.ndim - 1)).to(means)
                distance[population.path] += (means - rate).square().flatten(1).sum(1).cpu()
                power[population.path] += float(rate.double().square().sum())
    return {path: (distance[path] / max(power[path], 1e-30)).tolist() for path in distance}


def _sent(model: Any, batch: Mapping[str, Tensor]) -> dict[Population, Tensor]:
    sent: dict[Population, Tensor] = {}
    handles = [
        population.register_forward_hook(lambda module, _, output: sent.update({module: output}))
        for population in populations(model).values()
    ]
    try:
        # Other backends let linear layers read spikes; torch's always sends values over time.
        with model.simulation.using(network="snn", kernels="torch", observers=[]):
            model(**inputs_of(batch))
    finally:
        for handle in handles:
            handle.remove()
    return sent
