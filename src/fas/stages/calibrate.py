"""Stage 2 without gradients: coarse per layer, fine per channel, on spiking predecessors' outputs."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from fas.calibration.allocation import costs_of
from fas.calibration.figures import mean_of
from fas.calibration.fit import Fit, counted, drive, fit_channels, fit_layer, mean_spikes
from fas.calibration.fit_range import fit_range, is_by_range
from fas.calibration.fit_sparse import SpikeCost, fit_sparse
from fas.calibration.fit_uneven import fit_uneven
from fas.calibration.residence import Residence
from fas.calibration.teacher import Aim, Teacher, is_corrected, neuron_tensors
from fas.calibration.walk import Visit, walk
from fas.checks import check_choice, check_number
from fas.errors import CalibrationError
from fas.layers.population import Population
from fas.surgery.parameters import undone_on_error
from fas.surgery.replace import populations, spiking_layers
from fas.types import Batches, Kept, Progress, Record, Site, Stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibrate(Stage):
    """Coarse-to-fine calibration, layer by layer in the order of execution.

    After stage 1 the quantised network is the teacher: what training has found for thresholds, offsets and initial
    potentials stays, and the mean error that spikes make of it (at other time steps; there is none at T = L) goes into
    the bias.

    Attributes:
        coarse: one threshold per layer, by the smallest mean squared error.
        fine: threshold, offset and initial potential per channel; the mean error goes into the bias, no value's counted
            as more than half a level (a trained network's whole).
        centred: whether fine calibration may centre a signed code on a value other than zero.
        max_rows: activations kept per site, for the mean errors.
        fit_rows: of these, how many thresholds are fitted to; ranges (``fit_range``) to all.
        spike_price: nats per answer that one spike per neuron and window may cost; None takes the neuron's own where
            every code is fitted by its range and a language model, in memory, answers each token, else 0. Above 0, fine
            calibration minimises expected divergence from the dense network + price · mean spikes, over all channels of
            all sites together: few spikes where errors matter little. It then chooses offsets itself, whatever
            ``centred`` says. At 0 it minimises the error of every channel alone. Training pays its own.
        spikes: per neuron and window, the mean of the whole network on the calibration data: finds the price.
        teacher: ``quantised`` (stage 1's network), ``ann``, or ``auto``: quantised if trained, else ann.

    Raises:
        ValueError: a price below 0, spikes of 0, both, or one of them without fine calibration; a teacher that is none.

    Source: FAS (arXiv 2502.04405), section on coarse-to-fine calibration. Deviation: the paper searches by
    gradient; here every step has a closed form or a grid, and the fine step corrects the bias as in
    Li et al. 2021 (arXiv 2106.06984).
    """

    coarse: bool = True
    fine: bool = True
    centred: bool = True
    max_rows: int = 16384
    fit_rows: int = 4096
    spike_price: float | None = None
    spikes: float | None = None
    teacher: Aim = "auto"

    def __post_init__(self) -> None:
        check_number("spike_price", self.spike_price, "nats per spike per neuron, a number of at least 0")
        check_number("spikes", self.spikes, "spikes per neuron and window, a number above 0", above=True)
        if self.spikes is not None and self.spike_price:
            raise ValueError(f"spikes is {self.spikes:g}, which finds the price: leave spike_price out")
        check_choice("teacher", self.teacher, get_args(Aim))
        asked = next((name for name in ("spike_price", "spikes") if getattr(self, name)), None)
        if asked and not self.fine:
            raise ValueError(f"{asked} is {getattr(self, asked):g}, which fine calibration pays: set fine=True")

    def run(self, model: Any, batches: Batches, progress: Progress | None = None, kept: Kept | None = None) -> Record:
        """Calibrate in place; thresholds that are set already are kept where both parts are off."""
        began, steps = time.perf_counter(), model.timesteps
        layers, teacher = spiking_layers(model), Teacher(model, self.teacher)
        trained = teacher.network == "quantised"
        costs = {} if trained else self._costs(model, batches, whole=not isinstance(kept, Residence))
        fitting = 0.0

        def visit(seen: Visit) -> dict[str, float]:
            nonlocal fitting
            population, site, cost = seen.population, seen.site, costs.get(seen.site.path)
            corrects = self._corrects(site, population, steps, trained=trained)
            target = population.quantised(seen.ann) if trained else population.replaced(seen.ann)
            if not trained:
                before = time.perf_counter()
                fit = self._fit(site, population, drive(seen.snn, population.neuron.bounds(steps)), steps, cost)
                fitting += time.perf_counter() - before
                population.set(fit.threshold, fit.offset, fit.v_init)
            # The very arithmetic that will run, not that of the fit.
            counts, sent = counted(seen.snn, population, population.neuron, steps)
            if corrects:
                error = target - sent
                if not trained:
                    # Values that saturate are off by more, a few by a thousand levels: no shift of all may follow them.
                    half = population.threshold / (2 * population.neuron.resolution(steps))
                    error = error.clamp(-half, half)
                shift = error.mean(0)
                for path in site.layers:
                    layers[path].push_error(shift, more=trained)
            figures = _figures(population, counts, sent, target, steps)
            if cost is not None:
                wrong = sent - population.replaced(seen.snn)
                error = wrong.var(0, correction=0) if corrects else wrong.square().mean(0)
                figures["expected_divergence"] = float((cost.error * error).sum())
            return figures

        if trained and is_corrected(model):
            logger.warning(
                "the biases have been corrected since the network was trained, and that is followed; start from what "
                "was trained (the directory that fas finetune wrote) for corrections of these time steps alone"
            )
        # Another try, with smaller batches, must not add to half of the corrections.
        with undone_on_error(neuron_tensors(model)):
            figures = walk(
                model, model.sites, batches, visit, max_rows=self.max_rows, teacher=teacher if trained else None,
                kept=kept, progress=progress,
            )  # fmt: skip
        tokens = sum(_positions(batch) for batch in batches)
        means = mean_of(model.sites, figures)
        seconds = time.perf_counter() - began
        results = {"seconds": seconds, "fit_seconds": fitting, "passes_seconds": seconds - fitting}
        results |= {"tokens": float(tokens), "mean_relative_error": means["relative_error"]}
        results["spikes_per_neuron"] = means["spikes_per_neuron"]
        if costs:
            results["expected_divergence"] = sum(f.get("expected_divergence", 0.0) for f in figures.values())
        return self.record(results, figures)

    def _costs(self, model: Any, batches: Batches, *, whole: bool) -> dict[str, SpikeCost]:
        """Return what errors and spikes cost at every site; nothing where none are to be weighed."""
        steps, price, found = model.timesteps, self.spike_price, populations(model)
        if price == 0 and self.spikes is None:
            return {}
        by_default = price is None and self.spikes is None
        if by_default:
            neurons = [population.neuron for population in found.values()]
            price = min(n.spike_price if is_by_range(n, steps) else 0.0 for n in neurons)
            # Gradients need the whole model in memory. The price is that of answers token by token, as words are: where
            # all tokens share one, what their errors do to it adds up.
            words = getattr(model, "get_output_embeddings", lambda: None)()
            told = words is not None and all("input_ids" in batch for batch in batches)
            if not (price and whole and told and self.fine) or any(p.is_meta for p in model.parameters()):
                return {}
        try:
            return costs_of(
                model, batches, price, self.spikes,
                lambda site, x, cost: self._fit(site, found[site.path], x, steps, cost),
            )  # fmt: skip
        except CalibrationError:
            # A model without logits has nothing that errors could be told by.
            if by_default:
                return {}
            raise

    def _corrects(self, site: Site, population: Population, steps: int, *, trained: bool) -> bool:
        """Whether the mean error of a site goes into the biases of the layers it drives.

        That of codes by range is the one of a few huge tokens: a bias for it harms all others.
        """
        return self.fine and bool(site.layers) and (trained or not is_by_range(population.neuron, steps))

    def _fit(self, site: Site, population: Population, x: Tensor, steps: int, cost: SpikeCost | None) -> Fit:
        neuron, per_channel = population.neuron, bool(population.log_threshold.ndim)
        if is_by_range(neuron, steps) and (self.coarse or self.fine or not population.is_set):
            # Errors of the factors of attention add up over all keys.
            return fit_range(x, neuron, steps, cost, per_channel=per_channel and self.fine, finest=not site.layers)
        # Rows lie in the order of the data, so every k-th is a fair sample.
        x = x[:: max(1, len(x) // self.fit_rows)]
        if cost is not None:
            return fit_sparse(x, neuron, steps, cost, per_channel=per_channel)
        if not neuron.even_levels:
            return fit_uneven(x, neuron, steps, per_channel=per_channel and self.fine)
        bounds = neuron.bounds(steps)
        start: Fit | None = None
        if self.coarse:
            start = fit_layer(x, bounds)
        elif population.is_set:
            start = Fit(population.threshold, population.offset, population.v_init, x.new_tensor(torch.inf))
        if self.fine and per_channel:
            return fit_channels(x, bounds, start, centred=self.centred)
        return fit_layer(x, bounds) if start is None else start


def _figures(population: Population, counts: Tensor, sent: Tensor, target: Tensor, steps: int) -> dict[str, float]:
    if not bool(counts.any()):
        logger.warning("site %s never fires on the calibration data: its layer sees constants", population.path)
    power = (target - target.mean(0)).square().mean().clamp_min(1e-20)
    return {
        "relative_error": float((sent - target).square().mean() / power),
        "spikes_per_neuron": mean_spikes(counts, population.neuron, steps),
        "threshold_mean": float(population.threshold.mean()),
    }


def _positions(batch: Mapping[str, Tensor]) -> int:
    """Return the tokens of a batch that are not padding; of other inputs, the samples."""
    mask = batch.get("attention_mask")
    if mask is not None:
        return int(mask.sum())
    first = next(iter(batch.values()))
    return first.numel() if first.ndim == 2 and not first.is_floating_point() else len(first)
