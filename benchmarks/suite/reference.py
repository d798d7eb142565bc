"""The semantics of the FAS reference code, stated plainly: T-fold batch, a loop over the steps at every neuron.

Written anew from what that code computes. Every step of every sample is a row of the batch, and everything but
the neurons runs on the rows as it is: attention, softmax, normalisation and activations see the values of single
steps (``operators="instant"``), the answer is the mean of the logits over the steps, and nothing is kept between
tokens. At the same thresholds its spikes are those of our online schedule with instant operators.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.suite.stock import sharing
from fas.conversion import revert
from fas.layers.linear import SpikingLinear
from fas.layers.population import Population
from fas.surgery.replace import spiking_layers
from fas.types import RateNeuron


class PlainNeurons(nn.Module):
    """The neurons of one site, advanced by ``RateNeuron.step`` in a loop over T.

    Args:
        population: whose neuron model and parameters to take.
        timesteps: T.
        readers: linear layers that read the same tensor: the loop runs once for all of them.
    """

    threshold: Tensor
    offset: Tensor
    v_init: Tensor

    def __init__(self, population: Population, timesteps: int, readers: int = 1) -> None:
        super().__init__()
        if not isinstance(population.neuron, RateNeuron):
            raise ValueError(
                f"site {population.path}: {type(population.neuron).__name__} has no step over time, which the "
                "reference semantics need; choose a rate-coded neuron such as signed_if"
            )
        self.neuron, self.timesteps, self.readers = population.neuron, timesteps, readers
        self.register_buffer("threshold", population.threshold.detach())
        self.register_buffer("offset", population.offset.detach())
        self.register_buffer("v_init", population.v_init.detach())
        self._latest: tuple[Tensor, Tensor] | None = None
        self._reads = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return θ s_t + μ of every step.

        Args:
            x: input of every step, [T·B, …, C], steps first.
        """
        if self._latest is None or self._latest[0] is not x:
            self._latest, self._reads = (x, self._loop(x)), 0
        sent = self._latest[1]
        self._reads += 1
        if self._reads == self.readers:
            self._latest = None
        return sent

    def _loop(self, x: Tensor) -> Tensor:
        currents = x.unflatten(0, (self.timesteps, -1)) - self.offset
        potential = (self.v_init * self.threshold).expand_as(currents[0])
        count = torch.zeros_like(currents[0])
        sent = []
        for current in currents:
            spikes, potential = self.neuron.step(current, potential, count, self.threshold, self.timesteps)
            count = count + spikes
            sent.append(spikes * self.threshold)
        return (torch.stack(sent) + self.offset).flatten(0, 1)


class PlainLinear(nn.Module):
    """A dense linear layer behind neurons, with the bias correction of calibration."""

    def __init__(self, dense: nn.Module, neurons: PlainNeurons, correction: Tensor) -> None:
        super().__init__()
        self.dense, self.neurons = dense, neurons
        self.register_buffer("correction", correction.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Map the values of every step, [T·B, …, in] to [T·B, …, out]."""
        return self.dense(self.neurons(x)) + self.correction.to(x.dtype)


class Reference(nn.Module):
    """A converted language model in the reference semantics, sharing its weights.

    Args:
        converted: the model; it is left as it is.
        kind: class of the neurons.

    Raises:
        ValueError: neurons without a step over time; sites that are no linear layer's input.
    """

    def __init__(self, converted: Any, kind: type[PlainNeurons] = PlainNeurons) -> None:
        super().__init__()
        self.timesteps: int = converted.timesteps
        layers: dict[str, SpikingLinear] = spiking_layers(converted)
        self.model = revert(sharing(converted))
        for site in converted.sites:
            if site.path not in layers:
                raise ValueError(
                    f"site {site.path} ({site.role}) is no linear layer's input; the reference semantics have neurons "
                    "there only: choose coverage 'mlp' or 'linear'"
                )
            neurons = kind(layers[site.path].population, self.timesteps, len(site.layers))
            for path in site.layers:
                dense = self.model.get_submodule(path)
                self.model.set_submodule(path, PlainLinear(dense, neurons, layers[path].correction))
            if site.activation is not None:
                # The neuron stands in the place of the activation.
                self.model.set_submodule(site.activation, nn.Identity())

    def forward(self, input_ids: Tensor, *, use_cache: bool = False, logits_to_keep: int = 0) -> Any:
        """Run all steps of all samples and return the mean logits; there is no cache.

        Args:
            input_ids: tokens [B, S].
            use_cache: must be False.
            logits_to_keep: last positions to have logits of, 0 for all.
        """
        if use_cache:
            raise ValueError("the reference semantics keep nothing between tokens: call with use_cache=False")
        rows = input_ids.repeat(self.timesteps, 1)
        logits = self.model(input_ids=rows, use_cache=False, logits_to_keep=logits_to_keep).logits
        return SimpleNamespace(logits=logits.unflatten(0, (self.timesteps, -1)).mean(0))
