"""The verbs on models: convert, calibrate, and back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor, nn

from fas.config import FASConfig
from fas.methods.fas import FAS
from fas.runtime.modules import ConvertedModule, install_module, uninstall_module
from fas.runtime.transformers_ import ConvertedModel, install, uninstall
from fas.surgery.probe import is_convolutional
from fas.types import Method, Progress, Record

logger = logging.getLogger(__name__)

Batches = Sequence[Mapping[str, Tensor]]


def convert(
    model: nn.Module,
    method: Method | None = None,
    *,
    calibration: Batches | None = None,
    probe: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Any:
    """Turn a pretrained transformer or convolutional network into a spiking network, in place.

    The model keeps its class, its weights and their names; linear layers at the method's sites are driven
    by spikes from now on. Without calibration data thresholds stay unset, and the spiking network
    refuses to run until ``calibrate`` has set them.

    A plain module with convolutions (torchvision, timm, own) needs ``probe``; its batches are dictionaries by the
    names of its forward's arguments (``{"x": images}``), and its batch normalisation is folded into the layers before
    it, so that ``revert`` gives the same function without it.

    Args:
        model: a transformers model, or a plain module with convolutions.
        method: the recipe; FAS at T = 8 by default.
        calibration: inputs of the model's forward (``fas.data.text.batches`` makes them of text).
        probe: a batch of one that the model accepts, where the default probe does not fit; a plain module has none.
        progress: told what is done, with parts done and in all.

    Returns:
        The same model.

    Raises:
        ValueError: a model that is converted already.
        SiteError: no place that could spike.
        CalibrationError: data on which the model yields NaN or infinite values.

    Example:
        >>> import fas, torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50))
        >>> data = [{"input_ids": torch.arange(20).view(2, 10)}]
        >>> snn = fas.convert(model, fas.FAS(timesteps=8, coverage="mlp"), calibration=data)
        >>> snn(input_ids=data[0]["input_ids"]).logits.shape
        torch.Size([2, 10, 50])
    """
    if isinstance(model, ConvertedModel):
        raise ValueError("the model is converted already; fas.revert(model) gives the dense one back")
    method = FAS() if method is None else method
    config = FASConfig(name_of(method), **_options(method))
    config.sites = method.select(model, probe)
    if is_convolutional(model):
        install_module(model, config, probe)
    else:
        install(model, config)
    if calibration is not None:
        calibrate(model, calibration, progress=progress)
    return model


def calibrate(model: Any, batches: Batches, *, progress: Progress | None = None) -> list[Record]:
    """Run the stages of the model's method that need no training, in place.

    Args:
        model: a converted model.
        batches: inputs of its forward.
        progress: told what is done, with parts done and in all.

    Returns:
        What each stage did.

    Raises:
        ValueError: a model that is not converted.
        CalibrationError: no data, or NaN or infinite activations (the layer is named).
    """
    if not isinstance(model, ConvertedModel):
        raise ValueError(f"{type(model).__name__} is not converted; call fas.convert first")
    records = [stage.run(model, batches, progress) for stage in model.fas_config.recipe.stages()]
    model.records.extend(records)
    return records


def revert(model: Any) -> Any:
    """Turn a converted model back into the dense one, in place, with its present weights.

    Raises:
        ValueError: a model that is not converted.
    """
    if not isinstance(model, ConvertedModel):
        raise ValueError(f"{type(model).__name__} is not converted")
    if isinstance(model, ConvertedModule):
        uninstall_module(model)
    else:
        uninstall(model)
    return model


def name_of(method: Method) -> str:
    """Return the registry name of a method: the file it stands in."""
    return type(method).__module__.rpartition(".")[2]


def _options(method: Method) -> dict[str, Any]:
    return {field.name: getattr(method, field.name) for field in fields(method)}  # type: ignore[arg-type]
