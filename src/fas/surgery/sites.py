"""Finding the sites: which linear layers a model runs, and which of them an activation feeds."""

from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fas.errors import SiteError
from fas.layers.linear import SpikingLinear
from fas.surgery.probe import evaluating, probe_inputs
from fas.types import Coverage, Site

logger = logging.getLogger(__name__)

# Activation modules by the name of their class: transformers and its model files define dozens.
_ACTIVATION = re.compile(r"gelu|relu|silu|swish|mish|sigmoid|tanh|softplus|activation|laplace", re.IGNORECASE)
_BLOCK = re.compile(r"^(?:.*?\.)?\d+(?=\.|$)")


def is_linear(module: nn.Module) -> bool:
    """Whether a module is y = Wx + b over the last dimension (``nn.Linear``, GPT-2's ``Conv1D``)."""
    if isinstance(module, nn.Linear):
        return True
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.ndim == 2


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an element-wise non-linearity."""
    leaf = next(module.children(), None) is None
    return leaf and not is_linear(module) and bool(_ACTIVATION.search(type(module).__name__))


def block_of(path: str) -> str | None:
    """Return the outermost repeated block a module lies in (``model.layers.3``), None outside of all."""
    found = _BLOCK.match(path)
    return found.group(0) if found else None


@dataclass
class _Call:
    """One call of a linear layer or an activation, in the order of execution."""

    path: str
    module: nn.Module
    input: Tensor
    output: Tensor | None = None


@dataclass
class _Trace:
    calls: list[_Call] = field(default_factory=list)

    def watch(self, path: str, module: nn.Module) -> list[RemovableHandle]:
        def before(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            tensors = (*arguments, *named.values())
            self.calls.append(_Call(path, module, next(t for t in tensors if isinstance(t, Tensor))))

        def after(_: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            next(call for call in reversed(self.calls) if call.path == path).output = output

        return [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after),
        ]


def trace(model: nn.Module, probe: Mapping[str, Any] | None = None) -> _Trace:
    """Run a probe through the model and record every call of a linear layer or an activation."""
    record, handles = _Trace(), []
    for path, module in model.named_modules():
        if is_linear(module) or is_activation(module):
            handles += record.watch(path, module)
    try:
        with evaluating(model):
            model(**(probe if probe is not None else probe_inputs(model)))
    finally:
        for handle in handles:
            handle.remove()
    return record


def _mlp_inputs(calls: list[_Call]) -> tuple[dict[str, _Call], list[_Call]]:
    """Match activations with the linear layer behind each.

    Behind an activation stands the next linear layer that reads something new: the projection beside it in
    a gated MLP (``up`` beside ``gate``) reads what an earlier layer has read.

    Returns:
        The activation's call by the path of the layer behind it, and the activations without one.
    """
    behind: dict[str, _Call] = {}
    unmatched = []
    for i, call in enumerate(calls):
        if is_linear(call.module):
            continue
        seen = {id(c.input) for c in calls[:i] if is_linear(c.module)}
        fresh = (c for c in calls[i + 1 :] if is_linear(c.module) and id(c.input) not in seen)
        layer = next(fresh, None)
        if layer is not None and block_of(layer.path) == block_of(call.path):
            behind.setdefault(layer.path, call)
        else:
            unmatched.append(call)
    return behind, unmatched


def _serves_only(calls: list[_Call], activation: str, covered: Callable[[str], bool]) -> bool:
    """Whether an activation's output goes to the layers of one site alone, each time it is called.

    Elsewhere its place could not be taken by the neuron: a layer that stays dense, or a module that
    several blocks share, still needs it.
    """
    readers = [
        frozenset(c.path for c in calls if is_linear(c.module) and c.input is made.output)
        for made in calls
        if made.path == activation
    ]
    return len(set(readers)) == 1 and all(covered(path) for path in readers[0])


def find_sites(
    model: nn.Module,
    coverage: Coverage = "linear",
    *,
    exclude: Iterable[str] = (),
    replace_activation: bool = False,
    probe: Mapping[str, Any] | None = None,
) -> list[Site]:
    """Find the places that spike, from one run of the model and no list of model classes.

    Args:
        model: any module that ``probe`` runs; parameters may lie on the meta device.
        coverage: ``mlp``, the layers behind the activation of every block's MLP; ``linear``, every linear
            layer that the model runs, the output head included.
        exclude: shell patterns of dotted names to leave dense (``lm_head``, ``*.0.mlp.*``).
        replace_activation: let the neuron stand for an activation other than ReLU as well, as the FAS
            paper does with GELU; needs fine-tuning.
        probe: a batch for the model's forward, by default the smallest that it accepts.

    Returns:
        Sites in the order of execution; layers that read the same tensor share one.

    Raises:
        SiteError: no site, or a block whose MLP shows no activation in front of a linear layer.
    """
    patterns = tuple(exclude)
    record = trace(model, probe)
    linear = [call for call in record.calls if is_linear(call.module)]
    behind, unmatched = _mlp_inputs(record.calls)
    behind = {path: call for path, call in behind.items() if block_of(path) is not None}

    def excluded(path: str) -> bool:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)

    def covered(path: str) -> bool:
        return not excluded(path) and (coverage == "linear" or path in behind)

    blocks = dict.fromkeys(b for c in linear if (b := block_of(c.path)) and not excluded(c.path))
    for block in blocks if coverage == "mlp" else ():
        if not any(block_of(path) == block for path in behind):
            names = [c.path for c in linear if block_of(c.path) == block]
            lost = [c.path for c in unmatched if block_of(c.path) == block]
            raise SiteError(
                f"no MLP site found in {block}: "
                + (f"nothing linear follows the activation {lost[0]}" if lost else "it calls no activation module")
                + f"; its linear layers are {', '.join(names)}. Exclude it (exclude=['{block}.*']), "
                "or use coverage 'linear', which needs no activation"
            )

    sites: dict[int, Site] = {}
    placed: set[str] = set()
    for call in linear:
        if not covered(call.path) or call.path in placed:
            continue
        placed.add(call.path)
        key = id(call.input)
        if key in sites:
            sites[key] = _with(sites[key], call.path)
            continue
        activation = behind.get(call.path)
        # The neuron is the quantised form of a ReLU whose output it reads; a gated product is not that.
        absorbs = (
            activation is not None
            and activation.output is call.input
            and (isinstance(activation.module, nn.ReLU) or replace_activation)
            and _serves_only(record.calls, activation.path, covered)
        )
        sites[key] = Site(
            path=call.path,
            role="mlp" if activation is not None else "linear_input",
            channels=call.input.shape[-1],
            signed=not absorbs,
            activation=activation.path if absorbs and activation is not None else None,
        )
    if not sites:
        kinds = sorted({type(m).__name__ for m in model.modules() if next(m.children(), None) is None})
        raise SiteError(
            f"{type(model).__name__} has no site for coverage {coverage!r}: it runs no linear layer that is "
            f"not excluded (patterns {list(patterns)}); its leaf modules are {', '.join(kinds)}"
        )
    for path in unreached(model, record) if coverage == "linear" else ():
        if not excluded(path):
            logger.warning("%s stays dense: the probe run never calls it", path)
    return list(sites.values())


def _with(site: Site, path: str) -> Site:
    return Site(site.path, site.role, site.channels, site.signed, site.activation, (*site.also, path))


def unreached(model: nn.Module, record: _Trace) -> list[str]:
    """Return the linear layers that a run did not call."""
    called = {call.path for call in record.calls}
    return [p for p, m in model.named_modules() if is_linear(m) and p not in called and not is_spiking(m)]


def is_spiking(module: nn.Module) -> bool:
    """Whether a module has been exchanged."""
    return isinstance(module, SpikingLinear)
