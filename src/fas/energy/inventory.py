"""Every operation of a converted model: what arrives there, and what work is left."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fas.energy.emission import sends_both_signs
from fas.layers.attention import AttentionOperands, Operand
from fas.layers.conv import SpikingConv2d
from fas.layers.gated_operators import GatedActivation, GatedNorm
from fas.layers.linear import SpikingLinear
from fas.layers.population import Population
from fas.layers.simulation import Simulation
from fas.layers.spiking_layer import SpikingLayer
from fas.surgery.probe import evaluating, hooked, probe_inputs, without_cache
from fas.surgery.replace import populations
from fas.surgery.sites import is_spiking
from fas.surgery.trace import is_activation, is_convolution, is_linear, starred
from fas.types import OPERANDS, Neuron

FLOATS = "floats"
SUMS = "sums of weighted spikes"
DIGITS = "gated digits"
_SHIFTED = "additions of stored values, shifted"
_MATRIX = frozenset({"mm", "bmm", "addmm", "baddbmm", "matmul", "convolution", "scaled_dot_product"}) | {
    "grouped_mm", "grouped_mm_fallback"
}  # fmt: skip
_ADDS = frozenset({"add", "sub", "rsub", "sum", "mean", "cumsum"})
_PRODUCTS = frozenset({"mul", "div", "addcmul", "neg"})
# What our attention computes on spikes beside its products, all of it in the notes of the attention module: scores,
# exponentials and their sum, the tables of gated functions.
_ATTENDS = frozenset({"mul", "div", "add", "sub", "sum", "mean", "exp", "tanh", "reciprocal", "clamp", "clamp_min"}) | {
    "floor", "abs", "sign", "frexp", "ldexp", "addcmul", "nan_to_num", "remainder"
}  # fmt: skip
# Nothing is computed: shapes, copies, choices by a mask, constants, integers that count positions.
_MOVES = re.compile(
    r"(unsafe_)?(view|view_as|reshape|reshape_alias|alias|transpose|permute|expand|slice|slice_scatter|select|split|"
    r"split_with_sizes|unsqueeze|squeeze|t|cat|stack|index|index_select|gather|copy|to_copy|clone|detach|to|contiguous|"
    r"where|masked_fill|empty|empty_like|zeros|zeros_like|ones|ones_like|new_\w+|full|full_like|arange|scalar_tensor|"
    r"lift_fresh|local_scalar_dense|embedding|native_dropout|dropout|repeat|repeat_interleave|roll|unbind|tril|triu|"
    r"constant_pad_nd|fill|zero|eq|ne|ge|le|gt|lt|unfold|as_strided)_?"
)


@dataclass(frozen=True)
class Operation:
    """One kind of operation; blocks that differ in number only are counted together.

    Attributes:
        path: where, the number of the block as ``*``.
        what: linear layer, product, softmax, normalisation, activation or the name of the operation.
        arrives: ``binary``, ``ternary`` or ``graded`` spikes, sums of those, digits of a gated population, floats.
        left: the work that remains, in words.
        floats: whether a multiplication with or an evaluation of a value that is not a spike remains.
        count: how many there are.
        amount: additions, multiply-adds or evaluations a token, over all of them, if every neuron fired once;
            of the products in attention, and of softmax, for each key of the context.
    """

    path: str
    what: str
    arrives: str
    left: str
    floats: bool
    amount: int
    count: int = 1


def alphabet(neuron: Neuron, simulation: Simulation) -> str:
    """Return what a neuron sends in one step: ``binary``, ``ternary`` or ``graded`` spikes."""
    if neuron.emission == "graded":
        return "graded spikes"
    return "ternary spikes" if sends_both_signs(neuron, simulation.schedule) else "binary spikes"


def operations(model: Any, probe: Mapping[str, Any] | None = None) -> list[Operation]:
    """List the operations of a converted model in the order in which a probe first meets them.

    The probe runs the dense network inside and then the spiking one, each watched at the level of single tensor
    operations: what no population and no known module accounts for is listed by its name, so that nothing stays hidden.

    Args:
        model: a converted model; without thresholds the dense network alone is watched.
        probe: a batch for its forward, by default the smallest that it accepts; a plain module has none.

    Raises:
        SiteError: a plain module without ``probe``.
    """
    inputs = probe if probe is not None else probe_inputs(model)
    first: Tensor = inputs.get(getattr(model, "main_input_name", ""), next(iter(inputs.values())))
    tokens = len(first) if first.is_floating_point() else first.numel()
    simulation: Simulation = model._simulation
    found: dict[tuple[str, str, str], Operation] = {}
    for network in ("ann", "snn") if all(neurons.is_set for neurons in populations(model).values()) else ("ann",):
        watch = _Watch(model, simulation, tokens)
        # A hook on a population would make attention show it what the dense network does not compute.
        parts = [(path, module) for path, module in model.named_modules() if not isinstance(module, Population)]
        handles = [handle for path, module in parts for handle in watch.follow(path, module)]
        # The native kernels would take longer to load than this pass.
        run = {"schedule": "layerwise", "execution": "collapsed", "weights": "float", "kernels": "torch"}
        with hooked(handles), evaluating(model), simulation.using(network=network, **run, observers=[]), watch:
            model(**inputs, **without_cache(model))
        found = {**watch.notes, **found}
    return list(found.values())


class _Watch(TorchDispatchMode):
    """Notes tensor operations with the module in which they happen."""

    def __init__(self, model: nn.Module, simulation: Simulation, tokens: int) -> None:
        super().__init__()
        self.simulation, self.tokens = simulation, tokens
        self.inside: list[tuple[str, nn.Module]] = []
        self.notes: dict[tuple[str, str, str], Operation] = {}
        # What the latest gated activation has sent; held, so that no other tensor takes its identity.
        self.digits: Tensor | None = None
        kinds = [module for module in model.modules() if not isinstance(module, Population)]
        self.linear, self.active = set(filter(is_linear, kinds)), set(filter(is_activation, kinds))
        layers = [module for module in kinds if module in self.linear or is_convolution(module) or is_spiking(module)]
        if not hasattr(model, "main_input_name"):
            # The image may be a constant current into the first layer.
            driven = all(map(is_spiking, layers[1:]))
        else:
            attention = any(isinstance(module, AttentionOperands) for module in kinds)
            driven = attention and all(is_spiking(layer) for layer in layers if not is_convolution(layer))
        # What flows between the layers is made of spikes only if every one of them is driven by spikes.
        self.between = SUMS if driven else FLOATS

    def follow(self, path: str, module: nn.Module) -> list[Any]:
        def enter(*_: Any) -> None:
            self.inside.append((path, module))
            self._module(path, module)

        def leave(_: nn.Module, arguments: Any, output: Any) -> None:
            self.inside.pop()
            if isinstance(module, SpikingConv2d):
                arrives = alphabet(module.population.neuron, self.simulation)
                amount = output[:, 0].numel() * module.weight.numel() / self.tokens
                self._note(path, "convolution", arrives, "additions", amount, floats=False)
            elif isinstance(module, GatedActivation):
                name = f"activation {module.function.name}"
                self._note(path, name, self.between, DIGITS, output.numel() / self.tokens, floats=False)
                self.digits = output
            elif module in self.active and not isinstance(module, nn.ReLU | nn.Identity):
                name = f"activation {type(module).__name__}"
                self._note(path, name, self.between, "evaluations", output.numel() / self.tokens, floats=True)

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        result = next(
            (x for x in (output if isinstance(output, tuple | list) else (output,)) if isinstance(x, Tensor)), None
        )
        if result is not None and result.is_floating_point() and self.inside:
            self._tensor(func.overloadpacket.__name__.strip("_"), args, result)
        return output

    def _note(self, path: str, what: str, arrives: str, left: str, amount: float, *, floats: bool) -> None:
        # Blocks of one number are alike only where the same arrives.
        key = starred(path), what, arrives
        share = round(amount)
        known = self.notes.get(key)
        if known is None:
            self.notes[key] = Operation(key[0], what, arrives, left, floats, share)
        else:
            self.notes[key] = replace(known, amount=known.amount + share, count=known.count + 1)

    def _tensor(self, name: str, arguments: Any, result: Tensor) -> None:
        path, module = self.inside[-1]
        if any(_accounted(outer) for _, outer in self.inside) or _MOVES.fullmatch(name):
            return
        name = "scaled_dot_product" if "scaled_dot_product" in name else name.removeprefix("safe_").rstrip("_")
        if isinstance(getattr(module, "operands", None), AttentionOperands):
            if name in (*_MATRIX, "softmax") or (self.simulation.network == "snn" and name in _ATTENDS):
                return
        amount = result.numel() / self.tokens
        if name == "amax":
            self._note(path, "maximum of a row", self.between, "comparisons", amount, floats=self.between == FLOATS)
            return
        here = f"in {path} ({type(module).__name__})" if path else f"in {type(module).__name__}"
        if name == "convolution":
            self._note(path, name, FLOATS, "multiply-adds", amount * arguments[1][0].numel(), floats=True)
        elif "batch_norm" in name:
            self._note(here, name, self.between, "multiplications and additions", 2 * amount, floats=True)
        elif "max_pool" in name or name == "relu":
            self._note(here, name, self.between, "comparisons", amount, floats=self.between == FLOATS)
        elif "avg_pool" in name:
            self._note(here, name, self.between, "additions", amount, floats=self.between == FLOATS)
        elif name in _MATRIX:
            inner = next((x.shape[-1] for x in arguments if isinstance(x, Tensor)), 1)
            self._note(here, name, FLOATS, "multiply-adds", amount * inner, floats=True)
        elif name in _ADDS:
            left = "additions" if self.between == FLOATS else "graded accumulation, additions"
            self._note(here, name, self.between, left, amount, floats=self.between == FLOATS)
        elif name == "mul" and any(x is self.digits for x in arguments if isinstance(x, Tensor)):
            self._note(here, "gated product", DIGITS, _SHIFTED, amount, floats=False)
        elif name in ("mul", "div") and sum(isinstance(x, Tensor) and x.ndim > 0 for x in arguments) == 1:
            left = "scaling by one number, which weights or thresholds can take in"
            self._note(here, name, self.between, left, amount, floats=self.between == FLOATS)
        elif name in _PRODUCTS:
            self._note(here, name, self.between, "multiplications", amount, floats=True)
        else:
            self._note(here, name, FLOATS, "evaluations", amount, floats=True)

    def _module(self, path: str, module: nn.Module) -> None:
        if isinstance(module, SpikingLinear):
            population = module.population
            if population.neuron.adapts and population.path == path:
                left = "a mean and a maximum a token, whose exponent the thresholds follow"
                self._note(path, "token size", self.between, left, 2 * population.channels, floats=True)
            arrives = alphabet(population.neuron, self.simulation)
            self._note(path, "linear", arrives, "additions", module.in_features * module.out_features, floats=False)
        elif module in self.linear:
            weight: Any = module.weight
            self._note(path, "linear", FLOATS, "multiply-adds", weight.numel(), floats=True)
        elif isinstance(module, GatedNorm):
            width = module.weight.shape[0]
            self._note(path, "square, root, reciprocal", self.between, DIGITS, width + 2, floats=False)
            self._note(path, "normalisation", DIGITS, _SHIFTED, width, floats=False)
        elif type(module).__name__.endswith("Norm"):
            width = int(getattr(module, "weight", torch.empty(0)).shape[0])
            left = "multiplications, squares, one root and one reciprocal a row"
            self._note(path, "normalisation", self.between, left, 2 * width, floats=True)
        operands = getattr(module, "operands", None)
        if isinstance(operands, AttentionOperands):
            self._attention(path, operands)

    def _attention(self, path: str, operands: AttentionOperands) -> None:
        factors: dict[str, Any] = {role: getattr(operands, role, None) for role in OPERANDS}
        sent = {r: FLOATS if f is None else alphabet(f.neuron.neuron, self.simulation) for r, f in factors.items()}
        channels = {role: 0 if factor is None else factor.neuron.channels for role, factor in factors.items()}
        for what, driver, store in (("query · key", "query", "key"), ("weights · values", "attention_weight", "value")):
            spiking = sent[driver] != FLOATS
            kept = f"{store} {'counts' if sent[store] != FLOATS else 'floats'}"
            left = f"additions of stored {kept}" if spiking else f"multiply-adds with stored {kept}"
            self._note(path, what, sent[driver], left, max(channels["query"], channels[store]), floats=not spiking)
        query = factors["query"]
        if query is not None and bool((query.neuron.offset != 0).any()):
            # What no spike of a query says, times every key.
            left = "multiply-adds with stored keys"
            self._note(path, "offset of query · key", FLOATS, left, channels["query"], floats=True)
        gates, heads = operands.softmax_gated, channels["attention_weight"]
        left = DIGITS if gates else "an exponential a key, a reciprocal a query"
        self._note(path, "softmax", self.between, left, heads, floats=not gates)
        arrives, left = (DIGITS, _SHIFTED) if gates else (self.between, "multiplications")
        self._note(path, "division by the sum", arrives, left, channels["query"], floats=not gates)


def _accounted(module: nn.Module) -> bool:
    """Whether a module's own note says all about what happens in it."""
    known = isinstance(module, SpikingLayer | Population | Operand | GatedNorm | GatedActivation)
    norm = type(module).__name__.endswith("Norm") and next(module.children(), None) is None
    return known or is_linear(module) or is_activation(module) or norm
