"""One dense model and what is made of it, each made once and sharing the weights."""

from __future__ import annotations

import copy
import itertools
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.suite.sizes import build, random_tokens
from fas.conversion import calibrate, convert
from fas.methods.fas import FAS
from fas.types import Record

# Random tokens have no documents: short windows calibrate as well as long ones.
_WINDOW = 64


def sharing(model: Any) -> Any:
    """Return a copy of a model whose parameters and buffers are those of the original."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


@dataclass
class Stock:
    """The models of one size.

    Attributes:
        size: name of the size, for messages and rows.
        method: what spikes, and over how many time steps.
        tokens: random tokens to calibrate on.
        device: where the models are.
        seed: of weights and tokens.
        parameters: file of calibrated parameters (``save``); calibration is done here if None.
        source: the dense model; built from the size's name if None.
        seconds: how long conversion and calibration took, once done.
        records: what calibration did.
    """

    size: str
    method: FAS
    tokens: int = 256
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    parameters: Path | None = None
    source: Any = None
    seconds: dict[str, float] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)

    @cached_property
    def dense(self) -> Any:
        """The model as transformers has it, float32."""
        model = build(self.size, seed=self.seed) if self.source is None else self.source
        return model.to(self.device)

    @cached_property
    def converted(self) -> Any:
        """The spiking model, calibrated."""
        model = sharing(self.dense)
        began = time.perf_counter()
        convert(model, self.method)
        self.seconds["conversion"] = time.perf_counter() - began
        if self.parameters is not None:
            model.load_state_dict(load_file(self.parameters), strict=False)
            return model
        rows = max(1, self.tokens // _WINDOW)
        ids = random_tokens(model, rows, min(self.tokens, _WINDOW), seed=self.seed + 1).to(self.device)
        began = time.perf_counter()
        self.records = calibrate(model, [{"input_ids": part} for part in ids.split(8)])
        self.seconds["calibration"] = time.perf_counter() - began
        return model

    @property
    def calibration_tokens(self) -> int:
        """Tokens that calibration has seen: whole windows."""
        return max(1, self.tokens // _WINDOW) * min(self.tokens, _WINDOW)

    def save(self, path: Path) -> None:
        """Write what calibration has set, and nothing of the dense model."""
        dense = self.dense.state_dict()
        own = {name: value for name, value in self.converted.state_dict().items() if name not in dense}
        save_file({name: value.contiguous() for name, value in own.items()}, path)

    def weight_bytes(self) -> tuple[int, int]:
        """Return the bytes of the linear layers' weights, which every pass reads, and those of all parameters."""
        linear = {id(m.weight): m.weight for m in self.dense.modules() if _is_linear(m)}
        everything = list(self.dense.parameters())
        return sum(map(_bytes, linear.values())), sum(map(_bytes, everything))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
