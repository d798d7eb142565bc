"""A linear layer that spikes drive, in the place and under the names of the dense one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fas.errors import FASError
from fas.kernels.interface.code import Code, recursion_of, version_of
from fas.kernels.interface.dispatch import choose
from fas.kernels.interface.table import LARGEST
from fas.layers.population import Population
from fas.layers.spiking_layer import SpikingLayer


@dataclass
class _Folded:
    """What a weight becomes once the parameters of the neurons are folded into it, and what it was made of."""

    # W μ, [out]: what comes when no neuron spikes.
    rest: Tensor
    # Another object as soon as parameters of the population are others.
    code: Code
    weight: Tensor
    version: tuple[int, int]
    integers: Integers | None = None


@dataclass
class Integers:
    """Weights in 8 bits: W · unit ≈ values · scale.

    Attributes:
        values: q [out, in], int8; the largest of each output is ±127.
        scale: [out], float32.
        error: ‖q · scale − W · unit‖ / ‖W · unit‖.
    """

    values: Tensor
    scale: Tensor
    error: float


class SpikingLinear(SpikingLayer):
    r"""y = W · (mean spikes) + b + δ, with W and b the very parameters of the dense layer.

    Args:
        dense: ``nn.Linear``, or a module with a transposed weight [in, out] (GPT-2's ``Conv1D``).
        population: the neurons in front.
        owner: whether this layer holds the population's parameters; another layer of the site does else.
    """

    # Those of the last layerwise call on floats without gradients.
    _settings: tuple[object, ...] | None = None

    def __init__(self, dense: nn.Module, population: Population, *, owner: bool = True) -> None:
        self.transposed = bool(getattr(dense, "transposed", not isinstance(dense, nn.Linear)))
        shape = cast(nn.Parameter, dense.weight).shape
        self.in_features, self.out_features = shape if self.transposed else reversed(shape)
        super().__init__(dense, population, self.out_features, owner=owner)
        self._known: _Folded | None = None

    def extra_repr(self) -> str:
        """Name what a printed model should show."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, site={self.population.path}"

    def forward(self, x: Tensor) -> Tensor:
        """Map [*B, in] to [*B, out] through the spikes of the population."""
        population = self.population
        simulation = population.simulation
        # After a call under the same settings there is less to ask.
        if self._settings == simulation.unchanged and population.active:
            return self._in_floats(x)
        network = simulation.network
        if network == "ann" or not population.active:
            if torch.compiler.is_compiling():
                # The dense module lies outside of the tree, where a graph does not reach.
                return functional.linear(population(x), self._matrix(), self.bias)
            # The dense module itself: bit-equal to the model before conversion.
            output: Tensor = self.dense()(population(x))
            return output
        if network == "snn" and simulation.weights == "int8":
            return self._in_integers(x)
        trains = torch.is_grad_enabled() and self.weight.requires_grad
        if network == "snn" and not trains and simulation.schedule == "layerwise" and not population.differentiates(x):
            self._settings = simulation.unchanged or None
            return self._in_floats(x)
        if self._takes_spikes(x):
            return self._on_spikes(x)
        signal = population(x, "mean")
        if simulation.head is self:
            signal = simulation.reduced(signal)
        return functional.linear(signal, self._matrix(), self._bias(x.dtype))

    @property
    def _neurons_elsewhere(self) -> bool:
        """Whether accelerate keeps the neurons off the memory, and brings them only while the population runs."""
        return bool(self.population._parameters["log_threshold"].is_meta)  # type: ignore[union-attr]

    def _present(self, name: str) -> Any:
        # Attribute access of a module is slow; the weight of an expert is no parameter.
        return self._parameters[name] if name in self._parameters else getattr(self, name)

    def _is_plain(self, x: Tensor) -> bool:
        """Whether our own products can take input and weight."""
        # Elsewhere than on the CPU, to know how many neurons have spiked would be to wait for the device.
        weight = self._present("weight")
        plain = x.dtype == weight.dtype == torch.float32 and weight.is_contiguous() and x.is_cpu
        return plain and not self._neurons_elsewhere

    def _matrix(self) -> Tensor:
        """W, [out, in]."""
        return self.weight.T if self.transposed else self.weight

    def _bias(self, dtype: torch.dtype) -> Tensor:
        bias, correction = self._present("bias"), self._present("correction")
        if correction.dtype != dtype:
            correction = correction.to(dtype)
        total: Tensor = correction if bias is None else bias + correction
        return total if total.dtype == dtype else total.to(dtype)

    def _in_floats(self, x: Tensor) -> Tensor:
        """Layerwise without gradients: a single row reads only the weights of neurons that have spiked."""
        population, weight, plain = self.population, self._present("weight"), self._is_plain(x)
        rows = x.numel() // self.in_features
        steps = population.simulation.timesteps
        if not plain or rows != 1 or not self.transposed or population.neuron.bounds(steps)[1] > LARGEST:
            signal = population(x, "mean")
            if not plain or self.transposed:
                return functional.linear(signal, self._matrix(), self._bias(x.dtype))
            backend = choose("linear", population.simulation.kernels, x.device, x.dtype)
            product: Tensor = backend.linear(signal, weight, self._bias(x.dtype))
            return product
        counts, gain, code = population(x, "counts")
        backend = choose("event_linear", population.simulation.kernels, x.device, x.dtype)
        if int(counts.count_nonzero()) > backend.SPARSE * self.in_features:
            decode = choose("decode", population.simulation.kernels, x.device, x.dtype).decode
            signal = decode(counts, code, x.dtype, gain)
            return functional.linear(signal, self._matrix(), self._bias(x.dtype))
        sums = backend.event_linear(counts.view(-1), code.unit, weight, self._folded(code).rest)
        output: Tensor = (sums if gain is None else sums / gain.view(-1)) + self._bias(x.dtype)
        return output.view(*x.shape[:-1], self.out_features)

    def _takes_spikes(self, x: Tensor) -> bool:
        """Whether a product of spikes, online, is quicker than a dense one of what they stand for."""
        population, weight, simulation = self.population, self.weight, self.population.simulation
        # Graded spikes are more than a byte's ±1, and a window that began earlier has a state.
        if not simulation.folds or simulation.carry or recursion_of(population.neuron) not in ("binary", "ternary"):
            return False
        # The output layer has few rows: it answers for the mean over time.
        if simulation.head is self or population.differentiates(x):
            return False
        if (torch.is_grad_enabled() and weight.requires_grad) or not self._is_plain(x):
            return False
        backend = choose("spike_linear", simulation.kernels, x.device, x.dtype)
        return bool(x.numel() // self.in_features >= backend.TABLE_ROWS)

    def _on_spikes(self, x: Tensor) -> Tensor:
        """Online without gradients: the product is one of spikes, and means over time are taken of its answer."""
        population, simulation = self.population, self.population.simulation
        assert simulation.steps is not None
        spikes: Tensor = population(x, "spikes")
        code = population.code(x.dtype)
        output: Tensor = choose("spike_linear", simulation.kernels, x.device, x.dtype).spike_linear(
            spikes, code.threshold, self._matrix(), self._folded(code).rest + self._bias(x.dtype),
            first=simulation.steps.start, difference=simulation.operators == "difference",
        )  # fmt: skip
        return output.flatten(0, 1)

    def _in_integers(self, x: Tensor) -> Tensor:
        population, simulation = self.population, self.population.simulation
        if simulation.schedule != "layerwise" or population.differentiates(x):
            state = "compiled" if torch.compiler.is_compiling() else "has gradients"
            state = "is online" if simulation.schedule != "layerwise" else state
            raise FASError(
                f"weights='int8' multiplies the counts of a finished window and has no gradient, but the model {state}:"
                " set model.weights = 'float', or run it layerwise under torch.inference_mode()"
            )
        if self._neurons_elsewhere:
            raise FASError(
                f"weights='int8' needs the neurons of {population.path} in memory, and accelerate keeps them elsewhere:"
                " set model.weights = 'float'"
            )
        counts, gain, code = population(x, "counts")
        if code.upper > LARGEST:
            raise FASError(
                f"site {population.path}: counts of {type(population.neuron).__name__} at T = {simulation.timesteps} "
                f"exceed {LARGEST}, or are not whole numbers: set model.weights = 'float', or fewer time steps"
            )
        folded = self._folded(code)
        integers = folded.integers or self._integers(code)
        output: Tensor = choose("integer_linear", simulation.kernels, x.device, torch.float32).integer_linear(
            counts.view(-1, self.in_features), integers.values, integers.scale, folded.rest.float(), gain,
            self._bias(torch.float32), max(code.upper, -code.lower),
        )  # fmt: skip
        return output.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _folded(self, code: Code) -> _Folded:
        """Return what was folded earlier, or fold again after a change of weight, neurons or T."""
        # A change of the weight in place is seen by its version, which torch counts up; only changes through
        # ``weight.data`` escape it: call ``model.reset()`` after those.
        weight, known = self.weight, self._known
        version = version_of(weight)
        if known is None or known.code is not code or known.weight is not weight or known.version != version:
            rest = self._matrix().detach().to(code.offset.dtype) @ code.offset
            known = self._known = _Folded(rest, code, weight, version)
        return known

    def integers(self) -> Integers:
        """Return the weights in 8 bits, one scale per output; the neurons' units are folded into them."""
        return self._integers(self.population.code(self.population.log_threshold.dtype))

    @torch.no_grad()
    def _integers(self, code: Code) -> Integers:
        folded = self._folded(code)
        if folded.integers is None:
            matrix = self._matrix().detach().float() * folded.code.unit.float()
            scale = matrix.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
            values = (matrix / scale.unsqueeze(1)).round_().to(torch.int8).contiguous()
            power = float(matrix.norm())
            error = float((matrix - values * scale.unsqueeze(1)).norm()) / power if power else 0.0
            folded.integers = Integers(values, scale, error)
        return folded.integers

    def response(self, shift: Tensor) -> Tensor:
        """Return W · shift."""
        return self._matrix().to(shift.dtype) @ shift

    def reset(self) -> None:
        """Forget what has been folded."""
        self._known = None
