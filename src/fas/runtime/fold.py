"""Time in the batch: repeating what goes into a model and reducing what comes out.

Rows are time-major: row t·B + b holds step t of sample b.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fas.errors import FASError

# Positions within the sequence: one dimension, the same for every row.
_SHARED = frozenset({"cache_position", "logits_to_keep"})


def batch_rows(inputs: Mapping[str, Any]) -> int:
    """Return B, the rows of the batch that a model's forward was given.

    Raises:
        ValueError: if no input says how many samples there are.
    """
    for name in ("input_ids", "inputs_embeds", "pixel_values", "decoder_input_ids", "decoder_inputs_embeds"):
        value = inputs.get(name)
        if isinstance(value, Tensor):
            return len(value)
    raise ValueError(
        "the online schedule lays time steps into the batch and cannot tell its size: pass input_ids, "
        f"inputs_embeds or pixel_values by name (got {sorted(inputs)})"
    )


def fold(value: Any, rows: int, steps: int) -> Any:
    """Repeat every tensor of ``rows`` rows ``steps`` times; leave caches, flags and folded tensors."""

    def repeat(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or len(tensor) != rows:
            return tensor
        return tensor.repeat(steps, *[1] * (tensor.ndim - 1))

    return _map(value, repeat)


def fold_inputs(inputs: Mapping[str, Any], rows: int, steps: int) -> dict[str, Any]:
    """Apply ``fold`` to named inputs of a forward."""
    return {name: v if name in _SHARED else fold(v, rows, steps) for name, v in inputs.items()}


def reduce_steps(output: Any, rows: int, steps: int, reduction: Callable[[Tensor], Tensor]) -> Any:
    """Reduce tensors [steps·rows, …] in an output to what ``reduction`` makes of [steps, rows, …].

    Raises:
        FASError: an answer that compares samples of the batch with each other (CLIP): steps would be compared too.
    """
    if isinstance(output, Mapping) and "logits_per_image" in output:
        raise FASError(
            "the model compares every image with every text, which the online schedule cannot lay into the batch: set "
            "model.schedule = 'layerwise'"
        )

    def reduce(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or len(tensor) != steps * rows:
            return tensor
        return reduction(tensor.view(steps, rows, *tensor.shape[1:]))

    return _map(output, reduce)


def last(tensor: Tensor) -> Tensor:
    """The running mean at the last step."""
    return tensor[-1]


def mean(tensor: Tensor) -> Tensor:
    """The mean over steps."""
    return tensor.mean(0)


def running_mean(tensor: Tensor) -> Tensor:
    """The mean over the steps up to each, [n, …] to [n, …]."""
    count = torch.arange(1, len(tensor) + 1, device=tensor.device, dtype=tensor.dtype)
    return tensor.cumsum(0) / count.view(-1, *[1] * (tensor.ndim - 1))


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping) and hasattr(value, "to_tuple"):  # transformers' ModelOutput
        return type(value)(**{key: _map(v, function) for key, v in value.items()})
    if type(value) in (tuple, list):
        return type(value)(_map(v, function) for v in value)
    return value
