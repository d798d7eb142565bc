"""What is compared: the dense model, our executions, the reference semantics and SpikingJelly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from benchmarks.suite import dense_variants, spikingjelly
from benchmarks.suite.absent import AbsentError
from benchmarks.suite.contender import Contender
from benchmarks.suite.reference import Reference
from benchmarks.suite.sizes import random_tokens
from benchmarks.suite.stock import Stock, sharing


@dataclass(frozen=True)
class Subject:
    """One entry of the comparison.

    Attributes:
        name: on the command line and in rows.
        title: what it is, one line.
        make: returns it, or raises ``AbsentError``.
    """

    name: str
    title: str
    make: Callable[[Stock, str], Contender]


def _dense(stock: Stock, name: str) -> Contender:
    return Contender(name, stock.dense, about={"network": "ann"})


def _bfloat16(stock: Stock, name: str) -> Contender:
    native = stock.device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    about = {"network": "ann", "dtype": "bfloat16", "native": bool(native)}
    return Contender(name, dense_variants.bfloat16(stock.dense), about=about)


def _int8(stock: Stock, name: str) -> Contender:
    about = {"network": "ann", "dtype": "int8", "engine": torch.backends.quantized.engine}
    return Contender(name, dense_variants.int8(stock.dense), about=about)


def _ours(**settings: Any) -> Callable[[Stock, str], Contender]:
    def make(stock: Stock, name: str) -> Contender:
        everything = {"network": "snn", "schedule": "layerwise", "operators": "difference", **settings}
        return Contender(name, stock.converted, everything, about=_stated(stock, **everything))

    return make


def _ours_int8(stock: Stock, name: str) -> Contender:
    # A model of its own: going to and fro between kinds of weights would be part of what is timed.
    model = sharing(stock.converted)
    model.weights = "int8"
    settings = {"network": "snn", "schedule": "layerwise", "execution": "collapsed"}
    return Contender(name, model, settings, about=_stated(stock, **settings, weights="int8"))


def _ours_compiled(stock: Stock, name: str) -> Contender:
    if stock.device.type == "cpu":
        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            reason = "torch.compile makes C++ on a CPU, and there is no compiler: install g++ or clang"
            raise AbsentError(reason) from error
    return replace(_ours(execution="collapsed")(stock, name), compiled=True)


def _reference(stock: Stock, name: str) -> Contender:
    about = _stated(stock, network="snn", schedule="online", operators="instant")
    return Contender(name, Reference(stock.converted), cached=False, about=about)


def _if_nodes(stock: Stock, name: str) -> Contender:
    about = _stated(stock, network="snn", schedule="online", operators="instant")
    return Contender(name, Reference(stock.converted, spikingjelly.JellyNeurons), cached=False, about=about)


def _qwen2(stock: Stock, name: str) -> Contender:
    ids = random_tokens(stock.dense, 2, 32, seed=stock.seed + 1).to(stock.device)
    steps = stock.method.timesteps
    return Contender(name, spikingjelly.Qwen2(stock.dense, steps, ids), about={"network": "snn", "timesteps": steps})


def _stated(stock: Stock, **settings: Any) -> dict[str, Any]:
    method = stock.method
    return {"timesteps": method.timesteps, "coverage": method.coverage, "neuron": method.neuron, **settings}


_ALL = (
    Subject("dense", "transformers, float32", _dense),
    Subject("dense-bf16", "transformers, bfloat16", _bfloat16),
    Subject("dense-int8", "transformers, int8 by torch's dynamic quantisation", _int8),
    Subject("collapsed", "spiking, one pass on counts", _ours(execution="collapsed")),
    Subject("collapsed-int8", "spiking, one pass on counts, int8 weights", _ours_int8),
    Subject("collapsed-compiled", "the same, decoding by one compiled graph on a static cache", _ours_compiled),
    Subject("stepped", "spiking, layer after layer, every step", _ours(execution="stepped")),
    Subject("online", "spiking, all layers step by step, difference operators", _ours(schedule="online")),
    Subject(
        "online-instant",
        "spiking, all layers step by step, instant operators",
        _ours(schedule="online", operators="instant"),
    ),
    Subject("reference", "semantics of the FAS reference code: T-fold batch, loop over steps, no cache", _reference),
    Subject("spikingjelly-if", "the same with SpikingJelly's multi-step IF node in place of the loop", _if_nodes),
    Subject("spikingjelly-qwen2", "SpikingJelly's own recipe for Qwen2", _qwen2),
)

SUBJECTS = {subject.name: subject for subject in _ALL}


def chosen(names: list[str] | tuple[str, ...]) -> list[Subject]:
    """Return subjects by name, ``dense`` first: every ratio is taken to it.

    Raises:
        ValueError: an unknown name.
    """
    unknown = [name for name in names if name not in SUBJECTS]
    if unknown:
        raise ValueError(f"no subject {', '.join(unknown)}; available: {', '.join(SUBJECTS)}")
    return [SUBJECTS[name] for name in dict.fromkeys(["dense", *names])]
