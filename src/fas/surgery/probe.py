"""The smallest input that makes a model run through all of its layers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fas.errors import SiteError


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Take hooks away when the block ends."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Reached(Exception):
    """A pass has come to what was wanted of it: hooks raise it to end the pass there."""


def reads_images_and_text(model: nn.Module) -> bool:
    """Whether a model's forward takes pixels beside token ids."""
    names = _arguments(model)
    return "pixel_values" in names and not names.isdisjoint(("input_ids", "decoder_input_ids"))


def probe_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Return a batch of one that the model accepts: four token ids, one blank image, or both.

    Between images and text stand as many placeholders (``config.image_token_id``) as the model makes features of
    the image. Images that arrive cut into patches (Qwen2-VL) come with their grid.

    Raises:
        SiteError: if the model declares an input that is neither ids nor pixels, or none at all.
    """
    config: Any = getattr(model, "config", None)
    if is_plain(model):
        raise SiteError(
            f"{type(model).__name__} is not a transformers model and does not say what it reads: pass probe={{...}}, a "
            "batch of one by the names of its forward's arguments, such as probe={'x': images[:1]}"
        )
    name = model.main_input_name
    if name not in ("input_ids", "pixel_values"):
        raise SiteError(
            f"{type(model).__name__} takes {name!r}, for which no probe input is known; "
            "pass probe={...}, a batch of one that the model accepts"
        )
    if reads_images_and_text(model):
        return _images_and_text(model, config)
    if name == "pixel_values":
        return {"pixel_values": _blank(model, config)}
    ids = _ids(model, config)
    return {"input_ids": ids, "decoder_input_ids": ids} if config.is_encoder_decoder else {"input_ids": ids}


def _arguments(model: nn.Module) -> frozenset[str]:
    return frozenset(inspect.signature(type(model).forward).parameters)


def _ids(model: nn.Module, config: Any) -> Tensor:
    """Return four token ids [1, 4], none of them a placeholder."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    vocabulary = getattr(text, "vocab_size", 4)
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    kept = [i for i in range(min(vocabulary, 16)) if i not in {getattr(config, name, None) for name in names}]
    return torch.tensor([[kept[i % len(kept)] for i in range(4)]], device=next(model.parameters()).device)


def _blank(model: nn.Module, config: Any) -> Tensor:
    """Return one blank image [1, channels, height, width]."""
    size = getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    shape = (1, getattr(config, "num_channels", 3), height, width)
    first = next(model.parameters())
    return torch.zeros(shape, device=first.device, dtype=first.dtype if first.is_floating_point() else None)


def _images_and_text(model: Any, config: Any) -> dict[str, Tensor]:
    names, ids = _arguments(model), _ids(model, config)
    vision = getattr(config, "vision_config", None) or getattr(config, "encoder", None) or config
    inputs: dict[str, Tensor] = {}
    if "image_grid_thw" in names:
        # Two by two merged patches, each a row of pixels over channels and time.
        side = 2 * vision.spatial_merge_size
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        inputs["pixel_values"] = torch.zeros(
            side * side, width, device=ids.device, dtype=next(model.parameters()).dtype
        )
        inputs["image_grid_thw"] = torch.tensor([[1, side, side]], device=ids.device)
    else:
        inputs["pixel_values"] = _blank(model, vision)
    placeholder = getattr(config, "image_token_id", None)
    if placeholder is not None and hasattr(model, "get_image_features"):
        with evaluating(model):
            features = model.get_image_features(**inputs)
        marks = ids.new_full((1, _rows(features)), placeholder)
        if "mm_token_type_ids" in names:
            inputs["mm_token_type_ids"] = torch.cat([torch.ones_like(marks), torch.zeros_like(ids)], 1)
        ids = torch.cat([marks, ids], 1)
    if "input_ids" in names:
        inputs["input_ids"] = ids
    if "decoder_input_ids" in names:
        inputs["decoder_input_ids"] = ids
    return inputs


def _rows(features: Any) -> int:
    """Return the feature vectors in what a model makes of one image: a tensor, a list of some, or an output."""
    if hasattr(features, "pooler_output"):
        features = features.pooler_output
    parts = [features] if isinstance(features, Tensor) else list(features)
    return sum(part.shape[:-1].numel() for part in parts)


def is_plain(model: nn.Module) -> bool:
    """Whether a model is a plain module (torchvision, timm, own) and none of transformers."""
    return not hasattr(model, "main_input_name")


def is_convolutional(model: nn.Module) -> bool:
    """Whether a model is a plain module with convolutions."""
    return is_plain(model) and any(isinstance(m, nn.Conv2d) for m in model.modules())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode without gradients, and back into the mode it was in.

    A model of several parts whose own configuration says nothing of a cache of keys and values (BLIP, PaliGemma) does
    without one meanwhile: ``use_cache=False`` in the call would not reach the part that has it.
    """
    training = model.training
    configs = [] if without_cache(model) else _caching(model)
    model.eval()
    for config in configs:
        config.use_cache = False
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        for config in configs:
            config.use_cache = True


def without_cache(model: Any) -> dict[str, bool]:
    """Return the argument by which a model's forward keeps no keys and values; none where it has no such switch."""
    return {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}


def _caching(model: nn.Module) -> list[Any]:
    found = {id(config): config for m in model.modules() if (config := getattr(m, "config", None)) is not None}
    return [config for config in found.values() if getattr(config, "use_cache", None) is True]
