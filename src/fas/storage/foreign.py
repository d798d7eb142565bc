"""Checkpoints from elsewhere: no pickle is read, no file outside of the directory, no number that is none."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from fas.errors import CheckpointError, first_sentence
from fas.surgery.replace import populations, spiking_layers

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def weight_files(directory: Path) -> tuple[list[Path], dict[str, Any] | None]:
    """Return the safetensors of a model directory, and the index where there are several.

    Raises:
        CheckpointError: none; a pickle; an index that is damaged, or names files that are missing or outside.
    """
    if (directory / SAFE_WEIGHTS_NAME).is_file():
        return [directory / SAFE_WEIGHTS_NAME], None
    place = directory / SAFE_WEIGHTS_INDEX_NAME
    if not place.is_file():
        raise CheckpointError(_without_weights(directory))
    try:
        index: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
        if not names or not all(isinstance(name, str) for name in names):
            raise TypeError("no names")
    # RecursionError: brackets in brackets in brackets.
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise CheckpointError(f"{place} is damaged: copy it again") from None
    for name in names:
        if not is_plain_name(name) or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{place} names the file {name!r}: expected safetensors beside it, so nothing was read; take the "
                "checkpoint from its author"
            )
        if not (directory / name).is_file():
            raise CheckpointError(
                f"{directory / name} is missing: {SAFE_WEIGHTS_INDEX_NAME} names it; copy the checkpoint again"
            )
    return [directory / name for name in names], index


def _without_weights(directory: Path) -> str:
    pickles = sorted(p.name for p in directory.iterdir() if p.suffix in _PICKLES) if directory.is_dir() else []
    if not pickles:
        return (
            f"{directory} has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}: only safetensors are read; "
            "load the model with transformers and save it again, or copy the directory again"
        )
    return (
        f"{directory} has its weights in {pickles[0]}, a pickle, and no {SAFE_WEIGHTS_NAME}: pickles can run code when "
        "they are read, and fas reads none; take the model as safetensors, or load it with transformers, if you trust "
        "who wrote it, and save it again"
    )


def is_plain_name(name: object) -> bool:
    """Whether a file's name leads nowhere else: no folder, no parent, no root."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not {"/", "\\", "\0"} & set(name)
        and name.isprintable()
    )


def check_finite(tensors: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Refuse parameters with NaN or infinite values; those that are not in memory are passed over.

    Raises:
        CheckpointError: the first such parameter.
    """
    for name, x in tensors:
        if not x.is_floating_point() or not x.numel() or x.is_meta:
            continue
        # Smallest and largest are NaN where any value is: one pass, no copy.
        if bool(torch.stack(torch.aminmax(x.detach())).isfinite().all()):
            continue
        wrong = int(x.detach().isfinite().logical_not().sum())
        raise CheckpointError(
            f"{name} of {where} has {wrong} NaN or infinite values of {x.numel()}; the file is damaged, or training "
            "had diverged: copy it again, or take another checkpoint"
        )


def check_parameters(model: nn.Module, where: str) -> None:
    """Refuse a model that has NaN or infinite values among its parameters; thresholds that are not set are passed over.

    Raises:
        CheckpointError: the first such parameter.
    """
    named = model.named_parameters()
    check_finite(((name, x) for name, x in named if not name.endswith(".log_threshold")), where)


def check_generation(model: Any) -> None:
    """Refuse a generation configuration that transformers would not save, before hours of work on the model.

    Raises:
        CheckpointError: such a configuration.
    """
    config = getattr(model, "generation_config", None)
    try:
        if config is not None:
            config.validate(strict=True)
    except ValueError as error:
        raise CheckpointError(
            f"the generation configuration of {type(model).__name__} is invalid, and transformers saves none that is: "
            f"{first_sentence(error)}; correct model.generation_config, or generation_config.json in its directory"
        ) from None


def check_neurons(model: nn.Module, where: str) -> None:
    """Refuse neurons whose parameters are not numbers; a population without any threshold is not calibrated yet.

    Raises:
        CheckpointError: the first such parameter.
    """
    for path, population in populations(model).items():
        unset = not population.log_threshold.is_meta and bool(population.log_threshold.isnan().all())
        names = ("v_init", "offset") if unset else ("log_threshold", "v_init", "offset")
        check_finite([(f"{path}.neuron.{name}", getattr(population, name)) for name in names], where)
    for path, layer in spiking_layers(model).items():
        check_finite([(f"{path}.correction", layer.correction)], where)


def model_class(config: Any) -> Any:
    """Return the class of transformers that a configuration names, None if it names none that is a model."""
    import transformers

    for name in getattr(config, "architectures", None) or ():
        found = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return None


@contextmanager
def reading(name: str | Path) -> Iterator[None]:
    """Say which model it is, and why, where transformers cannot read one.

    Raises:
        CheckpointError: in place of whatever transformers raises.
    """
    try:
        yield
    except unfit() as error:
        raise CheckpointError(f"model {str(name)!r} cannot be loaded: {reason(error)}") from error


def unfit() -> tuple[type[Exception], ...]:
    """Return what transformers' code raises on files that it was not written for: nearly anything."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    found = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError, ArithmeticError)
    return (*found, AssertionError, struct.error, SafetensorError, StrictDataclassError)


def reason(error: BaseException) -> str:
    """Return why reading failed, in a sentence that can be acted on."""
    if "trust_remote_code" in str(error):
        return (
            "it brings code of its own, which is not run; if you trust who wrote it, load it in Python with "
            "trust_remote_code=True and call fas.convert"
        )
    text = first_sentence(error)
    # Of a missing key or attribute the text alone says little.
    return text if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {text}"
