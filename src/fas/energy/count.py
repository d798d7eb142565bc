"""Counting what a converted model really does: spikes and what they set off, and all that stays arithmetic."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fas.energy.arithmetic import Arithmetic, Digits
from fas.energy.emission import Code, Emission
from fas.energy.operands import Operands
from fas.energy.operations import Counts, Operations, Phase
from fas.energy.reach import Reach
from fas.errors import FASError
from fas.layers.attention import AttentionOperands, Operand
from fas.layers.gated import DIGITS, Gated
from fas.layers.gated_operators import GatedActivation, GatedNorm
from fas.layers.population import Population
from fas.layers.simulation import Positions, Simulation
from fas.layers.spiking_layer import SpikingLayer
from fas.runtime.parts import Folding
from fas.runtime.spiking import SpikingModel
from fas.surgery.probe import evaluating, hooked
from fas.surgery.replace import populations, spiking_layers
from fas.surgery.trace import is_activation
from fas.types import Progress

logger = logging.getLogger(__name__)


@contextmanager
def count_operations(model: Any) -> Iterator[Counts]:
    """Count the operations of a converted model while the block runs, whichever of its networks runs.

    The counts are of what happens in the block, not of an assumed rate: spikes as the neurons fire them, dense
    layers and attention as they are called; in front of a convolution a spike sets off as many additions as there are
    kernels over its position. Codes with graded spikes run stepped, since the number of their messages shows only step
    by step. What no spikes drive is repeated at every step online, and counted so. Pooling is not counted.

    Args:
        model: a converted model.

    Yields:
        The counts, complete when the block ends.

    Raises:
        ValueError: a model that is not converted.

    Example:
        >>> with count_operations(model) as counts:  # doctest: +SKIP
        ...     model.generate(**inputs, max_new_tokens=16)
        >>> counts.total("decode").additions / counts.tokens["decode"]  # doctest: +SKIP
        1203441.0
    """
    if not isinstance(model, SpikingModel):
        raise ValueError(f"{type(model).__name__} is not converted; call fas.convert first")
    simulation: Simulation = model.simulation
    counter = _Counter(model, simulation)
    settings: dict[str, Any] = {"observers": [*simulation.observers, counter]}
    if any(population.neuron.emission == "graded" for population in populations(model).values()):
        settings["execution"] = "stepped"
    with simulation.using(**settings), counter.watching(model), counter.arithmetic:
        yield counter.counts
    for name, calls in counter.counts.uncounted.items():
        logger.warning("%d calls of %s were not counted: the figures are too small", calls, name)


def counts_of(
    model: Any,
    batches: Sequence[Mapping[str, Tensor]],
    network: str = "snn",
    *,
    new_tokens: int = 0,
    progress: Progress | None = None,
) -> Counts:
    """Return the counts of one network of a converted model on some batches (``estimate_energy``)."""
    with count_operations(model) as counts, model.simulation.using(network=network), evaluating(model):
        for i, batch in enumerate(batches):
            _run(model, batch, new_tokens)
            if progress is not None:
                progress(f"counting operations, {network}", i + 1, len(batches))
    if counts.uncounted:
        missing = ", ".join(f"{calls} calls of {name}" for name, calls in counts.uncounted.items())
        raise FASError(
            f"{missing} in {type(model).__name__} cannot be counted, and a sum without them would be too small: "
            "no energy is estimated for this model; fas.count_operations counts what is known"
        )
    return counts


def _run(model: Any, batch: Mapping[str, Tensor], new_tokens: int) -> None:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if not new_tokens:
        model(**inputs)
        return
    # As many tokens from every network, whatever it would like to say.
    length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    end = model.config.eos_token_id
    model.generate(**inputs, **length, do_sample=False, pad_token_id=end if isinstance(end, int) else 0)


class _Counter:
    """Observes spikes and keeps track of which module runs, in which phase."""

    def __init__(self, model: Any, simulation: Simulation) -> None:
        self.counts = Counts(online=simulation.folds)
        self._simulation = simulation
        self._phase: Phase = "prefill"
        self._positions = Positions()
        self._stack: list[str] = []
        self._reach = Reach(spiking_layers(model), model.sites)
        self._populations = populations(model)
        self._codes: dict[str, Code] = {}
        gates = {path for path, m in model.named_modules() if isinstance(m, AttentionOperands) and m.softmax_gated}
        self._operands = Operands(model.sites, simulation, lambda: self._positions, self._at, self._offset, gates)
        self._fired: dict[str, Tensor] = {}
        self.arithmetic = Arithmetic(self._at, self._operands)
        self.counts.uncounted = self.arithmetic.uncounted

    def _at(self, path: str) -> Operations:
        return self.counts.at(self._phase, path)

    def _offset(self, path: str) -> int:
        population = self._populations[path]
        return int((population.offset != 0).expand(population.channels).sum())

    def observe(self, path: str, spikes: Tensor, timesteps: int) -> None:
        """Count one call of one site (see ``Observer``)."""
        simulation, population = self._simulation, self._populations[path]
        code = self._codes.get(path)
        if code is None:
            code = self._codes[path] = Code.of(population.neuron, timesteps, simulation.schedule)
        steps = timesteps if simulation.schedule == "layerwise" else len(spikes)
        emission = Emission(spikes.detach(), code, steps, self._fired.get(path) if self._continues else None)
        if simulation.carry:
            self._fired[path] = emission.fired
        if path in self._operands:
            self._operands.emitted(path, emission)
            return
        fan_out, words = self._reach.of_site(path, spikes.shape[1:]), None
        addresses, neurons = population.channels, 1
        if isinstance(fan_out, Tensor):
            # A neuron per position; a channel that fires anywhere fetches its kernels once for the whole map.
            words = self._reach.kernel_weights(path) * int((spikes > 0).flatten(0, -2).any(0).sum())
            addresses = neurons = fan_out.numel()
        emission.sent(self._at(path), addresses)
        if population.neuron.adapts:
            # Levels, their mean and maximum for the exponent of each token; a shift of every sum by it.
            found, tokens = self._at(path), spikes[0].numel() // population.channels
            found.multiplications += tokens * population.channels
            found.float_additions += tokens * (2 * population.channels + int(fan_out))
        dense = emission.neurons // neurons * int(fan_out if isinstance(fan_out, int) else fan_out.sum())
        emission.caused(self._at(path), fan_out, addresses=addresses, words=words, dense=dense)

    def hide(self, path: str, windows: int) -> None:
        """Leave out neurons of pairs that a mask hides (``Simulation.hide``)."""
        steps, found = self._simulation.steps, self._at(path)
        found.membrane_updates -= windows * (self._simulation.timesteps if steps is None else len(steps))
        if not self._continues:
            found.windows -= windows

    def gated(self, function: Gated, x: Tensor, result: Tensor) -> None:
        """Count evaluations of a gated population (``Simulation.gated``).

        A few-spikes neuron follows the digits of each input; every spike adds to the value, which starts from two words
        of its segment. Digits that drive a product add to that instead.
        """
        found = self._at(f"{self.arithmetic.place}.{function.name}")
        sent, number = int(function.spikes(x).sum(dtype=torch.float64)), x.numel()
        for name in ("spikes", "events", "event_bits", "shift_additions"):
            setattr(found, name, getattr(found, name) + sent)
        found.windows += number
        found.membrane_updates += number * function.digits
        found.outputs += number
        for name in ("weight_words", "weight_words_time", "weight_words_pass"):
            setattr(found, name, getattr(found, name) + 2 * number)
        if function is DIGITS:
            self.arithmetic.digits = Digits(result, sent, found)

    @property
    def _continues(self) -> bool:
        """Whether the running steps continue a window that earlier calls began."""
        return self._simulation.steps is not None and self._simulation.steps.start > 1

    @contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        parts = (part for part in model.modules() if isinstance(part, Folding))
        handles = [part.register_forward_pre_hook(self._begin, with_kwargs=True) for part in parts]
        for path, module in model.named_modules():
            if isinstance(module, Population):
                # Always inside of a unit; a hook in front of it would look like calibration.
                handles.append(module.register_forward_hook(self._dense_input))
            else:
                handles += self._follow(path, module)
        with hooked(handles):
            yield

    def _begin(self, part: Folding, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """Record a pass: how many positions are new, and whether there were any before."""
        if self._stack:
            return
        self._positions = Positions.of(part._named(arguments, keywords))
        self._phase = "decode" if self._positions.cached else "prefill"
        self.counts.tokens.setdefault(self._phase, 0)
        if not self._continues:
            self._fired.clear()
            self.counts.tokens[self._phase] += self._positions.tokens

    def _follow(self, path: str, module: nn.Module) -> list[Any]:
        """Hook a module, so that the place of what it computes is known."""
        unit = isinstance(module, SpikingLayer | Operand) or _is_norm(module) or is_activation(module)

        def enter(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._stack.append(path)
            self.arithmetic.place = path
            self.arithmetic.opaque += unit

        def leave(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if unit and self.arithmetic.opaque == 1:
                self._unit(path, module, arguments[0], output)
            self._stack.pop()
            self.arithmetic.place = self._stack[-1] if self._stack else ""
            self.arithmetic.opaque -= unit

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def _unit(self, path: str, module: nn.Module, values: Tensor, output: Tensor) -> None:
        spiking = self._simulation.network == "snn"
        if isinstance(module, SpikingLayer):
            found = self._at(module.population.path)
            found.outputs += output.numel()
            if not spiking:
                number = self._reach.multiply_adds(path, values)
                found.dense_multiply_adds += number
                found.weight_words += number
                found.weight_words_time += number
                found.weight_words_pass += module.weight.numel()
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            # Its statistics are constants: a gain and a shift per value.
            self._at(path).multiply_adds += output.numel()
        elif isinstance(module, GatedNorm) and spiking:
            # Squares, root, reciprocal and the product with it are counted where digits are sent.
            found = self._at(path)
            found.multiply_adds += output.numel()
            found.float_additions += output.numel() * (3 if module.centred else 1)
        elif _is_norm(module):
            found = self._at(path)
            found.multiply_adds += 2 * output.numel()
            found.roots += output.numel() // output.shape[-1]
        elif not isinstance(module, nn.ReLU | Operand) and not (isinstance(module, GatedActivation) and spiking):
            self._at(path).activations += output.numel()

    def _dense_input(self, population: nn.Module, arguments: tuple[Any, ...], values: Tensor) -> None:
        """Count what a dense layer multiplies if it skips zeros, and an activation that the site replaces."""
        assert isinstance(population, Population)
        layer = self._stack[-1]
        if self._simulation.network == "snn" or layer not in self._reach:
            return
        silent = population.offset if self._simulation.network == "quantised" else 0
        fan_out = self._reach.of_layer(layer, values.shape)
        found = self._at(population.path)
        found.nonzero_multiply_adds += int(((values != silent) * fan_out).sum())
        if layer == population.path or self._reach.routes(layer):
            found.windows += values.numel()
            if population.activation is not None and not isinstance(population.activation, nn.ReLU):
                found.activations += values.numel()


def _is_norm(module: nn.Module) -> bool:
    return next(module.children(), None) is None and "norm" in type(module).__name__.lower()
