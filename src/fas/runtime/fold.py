"""Time in the batch: repeating what goes into a model and reducing what comes out.

Rows are time-major: row t·B + b holds step t of sample b.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fas.errors import FASError

# Positions within the sequence, the same for every row; labels meet one answer for all steps.
_SHARED = frozenset({"cache_position", "logits_to_keep", "labels"})
# Rows are images, patches or frames of the whole batch, in the order of the texts.
_IMAGES = frozenset(
    "pixel_values pixel_values_videos pixel_attention_mask image_sizes spatial_shapes image_grid_thw video_grid_thw "
    "second_per_grid_ts".split()
)
# How images that are cut into patches are told apart.
_GRIDS = {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw"}


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
    """Apply ``fold`` to named inputs of a forward.

    Images and their patches are repeated as a whole, however many there are; positions [axes, rows, length] of
    several axes (Qwen2-VL) have the batch in their second dimension.
    """
    folded = {}
    for name, value in inputs.items():
        if name in _IMAGES and value is not None:
            folded[name] = value * steps if isinstance(value, list) else fold(value, len(value), steps)
        elif name == "position_ids" and value is not None and value.ndim == 3:
            folded[name] = value.repeat(1, steps, 1)
        else:
            folded[name] = value if name in _SHARED else fold(value, rows, steps)
    return folded


@contextmanager
def positions_folded(owner: Any, rows: int, steps: int) -> Iterator[None]:
    """Let ``rope_deltas`` [rows, 1] of a module have a row for every step meanwhile."""
    if owner.rope_deltas is not None:
        owner.rope_deltas = fold(owner.rope_deltas, rows, steps)
    try:
        yield
    finally:
        if owner.rope_deltas is not None and len(owner.rope_deltas) == rows * steps:
            owner.rope_deltas = owner.rope_deltas[:rows]


def repeated_images(inputs: Mapping[str, Any], times: int) -> dict[str, Tensor]:
    """Return patches of images [patches, …] for texts that are repeated ``times`` times, each in its turn.

    Raises:
        FASError: some text has no image or several, so that it is not known which ones to repeat.
    """
    texts, found = len(inputs["input_ids"]), {}
    for name, grid in _GRIDS.items():
        value, sizes = inputs.get(name), inputs.get(grid)
        if value is None:
            continue
        images = len(value) if sizes is None else len(sizes)
        if images != texts:
            raise FASError(
                f"beams and several answers, online, take one image for every text; got {images} ({name}) for {texts} "
                "texts: set model.schedule = 'layerwise', or ask for one answer without beams"
            )
        if sizes is not None:
            parts = value.split(sizes.prod(-1).tolist())
            found[name] = torch.cat([part for part in parts for _ in range(times)])
    return found


def reduce_steps(output: Any, rows: int, steps: int, reduction: Callable[[Tensor], Tensor]) -> Any:
    """Reduce tensors [steps·rows, …] in an output to what ``reduction`` makes of [steps, rows, …].

    Of answers that compare every image with every text (CLIP) those are meant that compare what belongs to the same
    step: of [steps·images, steps·texts] the blocks on the diagonal.
    """
    sizes = {steps * rows}
    if isinstance(output, Mapping) and "logits_per_image" in output:
        sizes.update(output["logits_per_image"].shape)

    def reduce(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or len(tensor) not in sizes:
            return tensor
        return reduction(tensor.unflatten(0, (steps, -1)))

    def of_equal_steps(tensor: Tensor) -> Tensor:
        blocks = tensor.unflatten(1, (steps, -1)).unflatten(0, (steps, -1))
        return reduction(blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0))

    reduced = _map(output, reduce)
    for name in ("logits_per_image", "logits_per_text"):
        if isinstance(output, Mapping) and name in output:
            reduced[name] = of_equal_steps(output[name])
    return reduced


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
