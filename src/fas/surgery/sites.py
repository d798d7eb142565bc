"""Finding the sites: which linear layers a model runs, and which of them an activation feeds."""

from __future__ import annotations

import difflib
import fnmatch
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from fas.errors import SiteError
from fas.layers.experts import ExpertLinear
from fas.layers.spiking_layer import SpikingLayer
from fas.surgery.experts import opened
from fas.surgery.flow import POOLS, RESHAPES, Flow
from fas.surgery.probe import is_convolutional, is_plain
from fas.surgery.trace import Call, Trace, block_of, is_activation, is_convolution, is_linear, trace
from fas.types import OPERANDS, Coverage, Role, Site

logger = logging.getLogger(__name__)


def check_exclude(model: nn.Module, patterns: Iterable[str]) -> None:
    """Refuse patterns of names to leave dense that match nothing.

    Raises:
        SiteError: such a pattern; names near it are given.
    """
    names = [name for name, _ in model.named_modules()]
    factors = [f"{name}.operands.{role}" for name in names for role in OPERANDS]
    for pattern in patterns:
        if any(fnmatch.fnmatchcase(name, pattern) for name in (*names, *factors)):
            continue
        within = fnmatch.filter(names, f"*{pattern}*")
        lower = {name.lower(): name for name in names}
        near = within[:3] or [lower[name] for name in difflib.get_close_matches(pattern.lower(), lower, 3, 0.4)]
        advice = f", or write '*{pattern}*'" if within else ""
        raise SiteError(
            f"exclude={pattern!r} matches no name of {type(model).__name__}; names near it are "
            f"{', '.join(near) or 'none'}: patterns match whole names{advice}"
        )


def check_adapters(model: nn.Module) -> None:
    """Refuse adapters that are not merged, as peft's LoRA: spikes would drive their factors beside the weight.

    Raises:
        SiteError: such a model.
    """
    for path, module in model.named_modules():
        if hasattr(module, "base_layer") and hasattr(module, "merged_adapters"):
            raise SiteError(
                f"{path} ({type(module).__name__}) carries an adapter beside its weight: merge it first, model = "
                "model.merge_and_unload(); one that transformers' load_adapter put there, load to the dense model with "
                "peft.PeftModel.from_pretrained(model, adapter) instead"
            )


def _mlp_inputs(calls: list[Call]) -> tuple[dict[str, Call], list[Call]]:
    """Return the call of each activation by the path of the linear layer after it, and the activations without one."""
    # That is the next one that reads something new: the projection beside it in a gated MLP does not.
    behind: dict[str, Call] = {}
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


def _serves_only(record: Trace, activation: str, covered: Callable[[str], bool]) -> bool:
    """Whether an activation's output goes to the layers of one site and nowhere else, each time it is called."""
    assert record.flow is not None
    readers = set()
    for made in record.calls:
        if made.path != activation:
            continue
        assert made.output is not None
        ends = record.flow.reaches(made.output, made.steps, RESHAPES)
        readers.add(frozenset(layer for key, layer in ends if key == id(made.output)))
        if any(key != id(made.output) or layer is None or not covered(layer) for key, layer in ends):
            return False
    return len(readers) == 1 and readers != {frozenset()}


def find_sites(
    model: nn.Module,
    coverage: Coverage = "linear",
    *,
    exclude: Iterable[str] = (),
    replace_activation: bool = False,
    heads: bool = False,
    probe: Mapping[str, Any] | None = None,
) -> list[Site]:
    """Find the places that spike, from one run of the model and no list of model classes.

    In a plain module with convolutions (torchvision, timm) their inputs are sites too, in transformers models not.

    Args:
        model: any module that ``probe`` runs; parameters may lie on the meta device.
        coverage: ``mlp``, the layers after the activation of every block's MLP; ``linear``, every linear
            layer that the model runs, the output head included; ``full``, query, key, value and weights of
            every attention module besides.
        exclude: shell patterns of dotted names to leave dense (``lm_head``, ``*.0.mlp.*``).
        replace_activation: let the neuron replace activations other than ReLU; needs fine-tuning.
        heads: count an activation outside of the blocks as an MLP's where a layer reads it directly (BERT's pooler).
        probe: a batch for the model's forward, by default the smallest that it accepts.

    Returns:
        Sites in the order of execution; layers that read the same tensor share one.

    Raises:
        SiteError: no site, an adapter, a pattern that matches nothing, a block whose MLP shows no activation in front
            of a linear layer, or (``full``) attention that neither goes through transformers' attention interface nor
            is written out as two products around a softmax.
    """
    patterns = tuple(exclude)
    check_adapters(model)
    with opened(model):
        check_exclude(model, patterns)
    if is_plain(model) and coverage == "full":
        raise SiteError(
            f"{type(model).__name__} is not a transformers model, so its attention cannot be reached: "
            "use coverage 'linear'"
        )
    if is_convolutional(model):
        return _convolutional_sites(model, coverage, patterns, replace_activation, probe)
    # Where tensors go matters only where a neuron could take an activation's place.
    replaceable = any(isinstance(m, nn.ReLU) or (replace_activation and is_activation(m)) for m in model.modules())
    with opened(model):
        record = trace(model, probe, attention=coverage == "full", flow=Flow() if replaceable else None)
    linear = [call for call in record.calls if is_linear(call.module)]
    behind, unmatched = _mlp_inputs(record.calls)
    reads = {call.path: call.input for call in linear}
    direct = {path for path, call in behind.items() if heads and call.output is reads[path]}
    behind = {path: call for path, call in behind.items() if block_of(path) is not None or path in direct}

    def excluded(path: str) -> bool:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)

    def covered(path: str) -> bool:
        return not excluded(path) and path not in record.others and (coverage != "mlp" or path in behind)

    # A layer that is itself numbered stands in a projector, between the blocks of two towers.
    blocks = dict.fromkeys(b for c in linear if (b := block_of(c.path)) not in (None, c.path) and not excluded(c.path))
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

    # Experts read rows of the tensor that a layer beside them reads whole: they have a site of their own.
    sites: dict[tuple[int, bool], Site] = {}
    placed: set[str] = set()
    factors = _operand_sites(model, record, excluded)
    ordered: list[tuple[int, bool] | Site] = []
    for when, call in enumerate(record.calls):
        ordered += [site for before, site in factors if before == when]
        if not is_linear(call.module) or not covered(call.path) or call.path in placed:
            continue
        placed.add(call.path)
        key = id(call.input), isinstance(call.module, ExpertLinear)
        if key in sites:
            sites[key] = replace(sites[key], also=(*sites[key].also, call.path))
            continue
        ordered.append(key)
        activation = behind.get(call.path)
        # The neuron is the quantised form of a ReLU whose output it reads; a gated product is not that.
        absorbs = (
            activation is not None
            and activation.output is call.input
            and (isinstance(activation.module, nn.ReLU) or replace_activation)
            and _serves_only(record, activation.path, covered)
        )
        sites[key] = Site(
            path=call.path,
            role="mlp" if activation is not None else "linear_input",
            channels=call.input.shape[-1],
            signed=not absorbs,
            activation=activation.path if absorbs and activation is not None else None,
        )
    ordered += [site for before, site in factors if before == len(record.calls)]
    if not ordered:
        kinds = sorted({type(m).__name__ for m in model.modules() if next(m.children(), None) is None})
        why = f"it runs no linear layer that is not excluded (patterns {list(patterns)})"
        if any(not excluded(call.path) for call in linear):
            why = "no linear layer follows an activation module within a numbered block; take coverage 'linear'"
        leaves = f"its leaf modules are {', '.join(kinds)}"
        raise SiteError(f"{type(model).__name__} has no site for coverage {coverage!r}: {why}; {leaves}")
    for path in unreached(model, record) if coverage != "mlp" else ():
        if not excluded(path):
            logger.warning("%s stays dense: the probe run never calls it", path)
    return [entry if isinstance(entry, Site) else sites[entry] for entry in ordered]


def _convolutional_sites(
    model: nn.Module,
    coverage: Coverage,
    patterns: tuple[str, ...],
    replace_activation: bool,
    probe: Mapping[str, Any] | None,
) -> list[Site]:
    # The neuron takes the place of a ReLU module only if all that reads it, directly or through maxima and reshapes,
    # are the layers of one site: a residual sum or an average still needs it. Where it stays, or is a function and no
    # module, the site has no sign, since its input cannot be negative.
    flow = Flow()
    record = trace(model, probe, flow=flow)
    layers = [call for call in record.calls if not is_activation(call.module)]
    made = [call for call in record.calls if is_activation(call.module)]

    def excluded(path: str) -> bool:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)

    readers: dict[int, dict[str, Call]] = {}
    for call in layers:
        if not excluded(call.path):
            readers.setdefault(id(call.input), {}).setdefault(call.path, call)
    absorbed, behind = _absorbed(flow, made, readers, replace_activation), set()
    for call in made:
        assert call.output is not None
        behind |= {key for key, _ in flow.reaches(call.output, call.steps, RESHAPES)}
    sites: list[Site] = []
    placed: set[str] = set()
    for key, group in readers.items():
        fresh = [call for path, call in group.items() if path not in placed]
        if not fresh:
            continue
        first, *others = fresh
        convolves = is_convolution(first.module)
        if coverage == "mlp" and (convolves or key not in behind):
            continue
        placed |= set(group)
        activation = absorbed.get(key)
        role: Role = "conv_input" if convolves else "mlp" if key in behind else "linear_input"
        sites.append(
            Site(
                path=first.path,
                role=role,
                channels=first.input.shape[-3 if convolves else -1],
                signed=activation is None and not flow.nonnegative(first.input),
                activation=activation,
                also=tuple(call.path for call in others),
            )
        )
    if not sites:
        raise SiteError(
            f"{type(model).__name__} has no site for coverage {coverage!r}: it runs no layer of that kind that is not "
            f"excluded (patterns {list(patterns)}); coverage 'linear' takes every convolution and linear layer"
        )
    called = {call.path for call in layers}
    for path, module in model.named_modules() if coverage == "linear" else ():
        if (is_linear(module) or is_convolution(module)) and path not in called and not excluded(path):
            logger.warning("%s stays dense: the probe run never calls it", path)
    return sites


def _absorbed(
    flow: Flow, made: list[Call], readers: dict[int, dict[str, Call]], replace_activation: bool
) -> dict[int, str]:
    """Return the activation module that the neuron of a site replaces, by the identity of the site's input."""
    candidates: dict[str, list[Call]] = {}
    for call in made:
        candidates.setdefault(call.path, []).append(call)
    absorbed: dict[int, str] = {}
    for path, calls in candidates.items():
        relu = isinstance(calls[0].module, nn.ReLU)
        if len(calls) > 1 or not (relu or replace_activation):
            continue
        assert calls[0].output is not None
        ends = flow.reaches(calls[0].output, calls[0].steps, RESHAPES | POOLS if relu else RESHAPES)
        keys = {key for key, _ in ends}
        if len(keys) == 1 and all(layer in readers.get(key, {}) for key, layer in ends):
            absorbed[keys.pop()] = path
    return absorbed


def _operand_sites(model: nn.Module, record: Trace, excluded: Callable[[str], bool]) -> list[tuple[int, Site]]:
    """Return the factors of every attention module, each with the number of layer calls before its first."""
    paths = {module: path for path, module in model.named_modules()}
    seen: dict[str, None] = {}
    found: list[tuple[int, Site]] = []
    for before, call in record.attention:
        path = paths[call.module]
        if path in seen:
            continue
        seen[path] = None
        (_, heads, _, width), (_, shared, _, _), (*_, value_width) = call.query, call.key, call.value
        channels: dict[Role, int] = {"query": heads * width, "key": shared * width, "value": shared * value_width}
        factors = [Site(f"{path}.operands.{role}", role, number) for role, number in channels.items()]
        factors.insert(
            2 if call.written else 3, Site(f"{path}.operands.attention_weight", "attention_weight", heads, signed=False)
        )
        found += [(before, site) for site in factors if not excluded(site.path)]
    for path in sorted(record.entered):
        if not any(f"{inner}.".startswith(f"{path}.") or f"{path}.".startswith(f"{inner}.") for inner in seen):
            raise SiteError(
                f"{path} ({type(model.get_submodule(path)).__name__}) computes attention by itself, neither through "
                "transformers' attention interface nor as two products around a softmax: use coverage 'linear'"
            )
    return found


def unreached(model: nn.Module, record: Trace) -> list[str]:
    """Return the linear layers that a run did not call."""
    called = {call.path for call in record.calls}
    return [p for p, m in model.named_modules() if is_linear(m) and p not in called and not is_spiking(m)]


def is_spiking(module: nn.Module) -> bool:
    """Whether a module has been exchanged."""
    return isinstance(module, SpikingLayer)
