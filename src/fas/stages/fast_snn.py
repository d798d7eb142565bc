"""Fast-SNN: layer-wise fine-tuning against the quantised network, on what spiking predecessors really send."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fas.errors import CalibrationError
from fas.layers.population import Population
from fas.layers.simulation import Simulation
from fas.surgery.parameters import swapped, undone_on_error
from fas.surgery.probe import Reached, evaluating, hooked
from fas.surgery.replace import populations, spiking_layers
from fas.training.descent import check_batches, check_descent, inputs_of
from fas.types import Batches, Kept, Progress, Record, Site, Stage

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class TuneLayers(Stage):
    r"""Minimise ‖q_l − s_l‖² for one layer after the other, in the order of execution.

    q_l is what neuron l sends in the quantised network as it was before; s_l the mean over T steps of what it sends in
    the spiking network, in the model's own schedule. The gradient is that of the quantised layer fed with the mean
    spikes of its spiking predecessors, with the value s_l in the place of its own: ∂/∂W ‖q̃_l(W) − q_l‖² at
    q̃_l = s_l. Weights and biases of the layers that lead to site l, and to none before, are trained; thresholds stay.

    Attributes:
        epochs: passes over the batches for every site.
        learning_rate: of SGD.
        momentum: of SGD.
        weight_decay: of SGD.
        force: keep the weights of a site's last step; off, those of the smallest error on the batches.

    Raises:
        ValueError: a field outside its range.
        CalibrationError: no batches.

    Source: Hu et al. 2023 (arXiv 2305.19868), section on layer-wise fine-tuning, and its released code (learning
    rate 1e-3, momentum 0.9, weight decay 5e-4, membrane reset at −1e-3 where the paper and we have 0). Deviation: the
    code keeps a layer's weights if the accuracy on the training set rose; here, if the site's error fell,
    which needs no labels. The code quantises weights to b bits as well; here they stay as they are.
    """

    epochs: int = 1
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    force: bool = False

    def __post_init__(self) -> None:
        check_descent(epochs=self.epochs, learning_rate=self.learning_rate, least_epochs=0)

    def run(self, model: Any, batches: Batches, progress: Progress | None = None, kept: Kept | None = None) -> Record:
        """Tune in place and report the error of every site before and after."""
        began = time.perf_counter()
        check_batches(batches)
        weights = _weights(model)
        free, figures = dict.fromkeys(weights), {}
        with undone_on_error(weights) as untouched, evaluating(model), model.simulation.using(observers=[]):
            for done, site in enumerate(model.sites, start=1):
                found = None if kept is None else kept.found(site.path)
                if found is None:
                    before = set(free)
                    figures[site.path] = self._tune(model, site, batches, free, untouched)
                    settled = {str(i): p for i, p in enumerate(weights) if p in before and p not in free}
                    if kept is not None:
                        kept.add(site.path, figures[site.path], settled)
                else:
                    figures[site.path] = found[0]
                    for i, value in found[1].items():
                        weights[int(i)].copy_(value)
                        free.pop(weights[int(i)])
                if progress is not None:
                    progress(site.path, done, len(model.sites))
        model.reset()
        return self.record({"seconds": time.perf_counter() - began}, figures)

    def _tune(
        self, model: Any, site: Site, batches: Sequence[Batch], free: dict[nn.Parameter, None],
        untouched: Mapping[nn.Parameter, Tensor],
    ) -> dict[str, float]:  # fmt: skip
        before = _error(model, site, batches, untouched)
        if not math.isfinite(before):
            raise CalibrationError(
                f"{site.path} sends NaN or infinite values: check the weights of the layers before it and the data"
            )
        best: tuple[float, list[Tensor]] = (before, [])
        optimizer = None
        trained: list[nn.Parameter] = []
        for _ in range(self.epochs if before > 0 else 0):
            for batch in batches:
                difference, proxy = _compared(model, site, batch, untouched, gradients=True)
                assert proxy is not None
                if not proxy.requires_grad:
                    break
                known = trained or list(free)
                # The gradient of the mean squared error at the value of the spikes.
                gradients = torch.autograd.grad(
                    proxy, known, grad_outputs=2 * difference / difference.numel(), allow_unused=True
                )
                if optimizer is None:
                    trained = [p for p, gradient in zip(known, gradients, strict=True) if gradient is not None]
                    gradients = tuple(gradient for gradient in gradients if gradient is not None)
                    if not trained:
                        break
                    best = (before, [p.detach().clone() for p in trained])
                    optimizer = torch.optim.SGD(
                        trained, self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
                    )
                for parameter, gradient in zip(trained, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
            if optimizer is None:
                break
            error = _error(model, site, batches, untouched)
            if error < best[0] or self.force:
                best = (error, [p.detach().clone() for p in trained])
        for parameter, value in zip(trained, best[1], strict=True):
            parameter.data.copy_(value)
            parameter.grad = None
        # What leads here has been tuned, or may not be any more.
        for parameter in trained or _leading(model, site, batches[0], free, untouched):
            free.pop(parameter, None)
        return {"error_before": before, "error_after": best[0], "parameters": float(sum(p.numel() for p in trained))}


def _weights(model: nn.Module) -> list[nn.Parameter]:
    """Return weights and biases of every layer that stands after neurons."""
    found: dict[nn.Parameter, None] = {}
    for layer in spiking_layers(model).values():
        found.update(dict.fromkeys(p for p in (layer.weight, layer.bias) if p is not None))
    return list(found)


def _leading(
    model: Any, site: Site, batch: Batch, free: Mapping[nn.Parameter, None], untouched: Mapping[nn.Parameter, Tensor]
) -> list[nn.Parameter]:
    """Return the parameters that a site's input depends on, not counting what reaches it through spikes."""
    _, proxy = _compared(model, site, batch, untouched, gradients=True)
    if not free or proxy is None or not proxy.requires_grad:
        return []
    gradients = torch.autograd.grad(proxy, list(free), torch.ones_like(proxy), allow_unused=True)
    return [p for p, gradient in zip(free, gradients, strict=True) if gradient is not None]


@torch.no_grad()
def _error(model: Any, site: Site, batches: Sequence[Batch], untouched: Mapping[nn.Parameter, Tensor]) -> float:
    total = count = 0.0
    for batch in batches:
        difference, _ = _compared(model, site, batch, untouched, gradients=False)
        total += float(difference.square().sum())
        count += difference.numel()
    return total / count


def _compared(
    model: Any, site: Site, batch: Batch, untouched: Mapping[nn.Parameter, Tensor], *, gradients: bool
) -> tuple[Tensor, Tensor | None]:
    """Return s_l − q_l of one batch, and the quantised layer on spiking predecessors, if gradients are asked for."""
    simulation: Simulation = model.simulation
    target_at, sent = populations(model)[site.path], {}
    with torch.no_grad(), swapped(untouched), simulation.using(network="quantised"):
        target = _sent(model, inputs_of(batch), target_at)[target_at]
    # Other backends let linear layers read spikes; torch's always sends values over time.
    with torch.no_grad(), simulation.using(network="snn", kernels="torch"):
        sent = {p: _mean(simulation, y) for p, y in _sent(model, inputs_of(batch), target_at).items()}
        difference = sent[target_at] - target
    if not gradients:
        return difference, None
    with torch.enable_grad(), simulation.using(network="quantised"):
        proxy = _sent(model, inputs_of(batch), target_at, {p: y for p, y in sent.items() if p is not target_at})
    return difference, proxy[target_at]


def _sent(
    model: Any, inputs: Mapping[str, Tensor], last: Population, given: Mapping[Population, Tensor] | None = None
) -> dict[Population, Tensor]:
    """Run the model up to a site and return what every site before it (which sends what is given) and itself sent."""
    sent: dict[Population, Tensor] = {}

    def keep(population: Any, arguments: Any, output: Tensor) -> Tensor | None:
        sent[population] = output
        if population is last:
            raise Reached
        return None if given is None else given[population].to(output.dtype)

    try:
        with hooked([population.register_forward_hook(keep) for population in populations(model).values()]):
            model(**inputs)
    except Reached:
        return sent
    finally:
        model.reset()
    raise CalibrationError(f"no activations reach {last.path}: the data does not take the model there")


def _mean(simulation: Simulation, output: Tensor) -> Tensor:
    """Return the mean over T steps of what a population has sent."""
    if not simulation.folds:
        return output
    return simulation.after_window(output.unflatten(0, (simulation.timesteps, -1)))
