"""The smallest input that makes a model run through all of its layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fas.errors import SiteError


def probe_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Return a batch of one that the model accepts: four token ids, or one blank image.

    Raises:
        SiteError: if the model declares an input that is neither ids nor pixels, or none at all.
    """
    config: Any = getattr(model, "config", None)
    if config is None and not hasattr(model, "main_input_name"):
        raise SiteError(
            f"{type(model).__name__} is no transformers model and does not say what it reads: pass probe={{...}}, a "
            "batch of one by the names of its forward's arguments, such as probe={'x': images[:1]}"
        )
    device = next(model.parameters()).device
    name = getattr(model, "main_input_name", "input_ids")
    if name == "input_ids":
        text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
        vocabulary = getattr(text_config, "vocab_size", 4)
        ids = (torch.arange(4, device=device) % vocabulary).unsqueeze(0)
        inputs = {"input_ids": ids}
        if getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = ids
        return inputs
    if name == "pixel_values":
        size = getattr(config, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        shape = (1, getattr(config, "num_channels", 3), height, width)
        return {"pixel_values": torch.zeros(shape, device=device)}
    raise SiteError(
        f"{type(model).__name__} takes {name!r}, for which no probe input is known; "
        "pass probe={...}, a batch of one that the model accepts"
    )


def is_convolutional(model: nn.Module) -> bool:
    """Whether a model is a plain module with convolutions (torchvision, timm, own) and none of transformers."""
    return not hasattr(model, "main_input_name") and any(isinstance(m, nn.Conv2d) for m in model.modules())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode without gradients, and back into the mode it was in."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
