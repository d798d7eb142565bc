"""Weights that several processes hold in parts (FSDP2), as ``accelerate launch`` sets it up."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy


def shards_weights() -> bool:
    """Return whether ``accelerate launch`` has been told to shard weights (FSDP)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def prepare_sharding(trainer: Any) -> None:
    """Check that a model can be sharded, and have it computed in the precision that one process computes in.

    Parameters are sent in float32 and autocast rounds inside of layers, as in one process. accelerate would send all
    of them in bfloat16 where that is the precision, thresholds too, and counts hang on thresholds.

    Raises:
        ValueError: processes without accelerators; FSDP1; a parameter that is a single number, or in half precision.
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        raise ValueError(
            "accelerate has been told to shard weights (FSDP), which it does on accelerators only and not among "
            f"{trainer.args.world_size} processes on {trainer.args.device}: leave FSDP out of its configuration"
        )
    if plugin.fsdp_version != 2:
        raise ValueError(f"fsdp_version is {plugin.fsdp_version} in accelerate's configuration: set it to 2")
    for name, parameter in trainer.model.named_parameters():
        if parameter.ndim == 0:
            raise ValueError(f"{name} is a single number, which FSDP cannot shard: convert with thresholds per channel")
        if parameter.dtype.itemsize < 4:
            raise ValueError(
                f"{name} is {parameter.dtype}, and weights are sharded in the precision of thresholds, float32: load "
                "the model with dtype=torch.float32 (precision='bf16' is the arithmetic's)"
            )
    plugin.mixed_precision_policy = MixedPrecisionPolicy()


@torch.no_grad()
def take_weights(whole: nn.Module, sharded: nn.Module) -> None:
    """Copy the parameters of a sharded module into a twin that every process holds whole."""
    # Tied parameters have several names, of which the twins need not list the same one first.
    targets = dict(whole.named_parameters(remove_duplicate=False))
    for name, parameter in sharded.named_parameters():
        full = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        targets[name].copy_(full)
