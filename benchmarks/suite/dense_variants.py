"""The dense model in fewer bits: bfloat16, and int8 weights and activations by torch's dynamic quantisation."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import nn

from benchmarks.suite.absent import AbsentError
from benchmarks.suite.stock import sharing


def bfloat16(dense: Any) -> Any:
    """Return a copy in bfloat16."""
    return copy.deepcopy(dense).to(torch.bfloat16)


def int8(dense: Any) -> Any:
    """Return a copy whose linear layers hold int8 weights and quantise their inputs as they arrive.

    GPT-2's ``Conv1D`` becomes ``nn.Linear`` first: torch quantises no other.

    Raises:
        AbsentError: this build of torch has no dynamic quantisation, or the model lies on another device than the CPU.
    """
    if next(dense.parameters()).device.type != "cpu":
        raise AbsentError("torch's dynamic quantisation runs on the CPU only")
    model = sharing(dense)
    for path, module in list(model.named_modules()):
        if type(module).__name__ == "Conv1D":
            model.set_submodule(path, _linear(module))
    with warnings.catch_warnings():
        # torch announces its removal; torchao, which follows it, is a further dependency.
        warnings.filterwarnings("ignore", message=r"(?s).*torch\.ao\.quantization is deprecated")
        warnings.filterwarnings("ignore", message=r"(?s).*torch\.quantize_per_tensor")
        try:
            from torch.ao.quantization import quantize_dynamic
        except ImportError:
            raise AbsentError(f"torch {torch.__version__} has no dynamic quantisation any more") from None
        if torch.backends.quantized.engine == "none":
            raise AbsentError("this build of torch has no engine for quantised layers")
        return quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)


def _linear(module: Any) -> nn.Linear:
    inputs, outputs = module.weight.shape
    layer = nn.Linear(inputs, outputs, device="meta")
    layer.weight = nn.Parameter(module.weight.detach().T.contiguous(), requires_grad=False)
    layer.bias = nn.Parameter(module.bias.detach(), requires_grad=False)
    return layer
