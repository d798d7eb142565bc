"""GGUF files, the format of llama.cpp: read by transformers, dequantised to float32."""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fas.errors import CheckpointError, MissingExtraError
from fas.storage.foreign import first_sentence, unfit

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_PIECE = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


def only_file(directory: Path) -> str | None:
    """Return the GGUF file that is all a directory has of weights; None where there is none, or safetensors too.

    Raises:
        CheckpointError: several.
    """
    found = sorted(file.name for file in directory.glob(f"*{SUFFIX}"))
    if not found or next(directory.glob("*.safetensors"), None) is not None:
        return None
    if len(found) > 1:
        raise CheckpointError(
            f"{directory} has {len(found)} GGUF files ({', '.join(found[:6])}): choose one with --gguf-file, or name "
            f"the file itself, {directory / found[0]}"
        )
    return found[0]


@contextmanager
def reading_gguf(place: str, file: str) -> Iterator[None]:
    """Say what is wrong where a GGUF file cannot be read.

    Raises:
        MissingExtraError: the package gguf is not installed.
        CheckpointError: not a GGUF file, a damaged one, one piece of several, or a kind that transformers cannot read.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError(f"{file} is a GGUF file, which the package gguf reads: pip install 'fas[gguf]'")
    if (pieces := _PIECE.search(file)) is not None and int(pieces[1]) > 1:
        raise CheckpointError(
            f"{file} is one piece of {int(pieces[1])}: join them first, with llama-gguf-split --merge of llama.cpp"
        )
    path = Path(place) / file
    if path.is_file():
        with path.open("rb") as opened:
            if opened.read(len(_MAGIC)) != _MAGIC:
                raise CheckpointError(f"{path} is not a GGUF file, whatever its name: download it again")
    reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    reader.tqdm = partial(reader.tqdm, disable=None)  # a bar on a terminal only
    try:
        yield
    except unfit() as error:
        if path.is_file() and (damage := _damage(path)):
            raise CheckpointError(f"{path} is truncated or damaged ({damage}): download it again") from error
        raise CheckpointError(
            f"{file} cannot be read: {first_sentence(error)}; transformers reads some architectures and kinds of "
            "quantisation of GGUF only: take the model as safetensors, or another GGUF file of it (Q4_K_M, Q8_0, F16)"
        ) from error


def dense(model: Any, name: str) -> Any:
    """Return the dense float32 model that transformers has dequantised, as one that can be saved.

    transformers takes what it has read from a GGUF file for quantised still.
    """
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    made = type(model)(config)
    # The tensors themselves: two copies of a large model would not fit into memory.
    made.load_state_dict(model.state_dict(), assign=True)
    made.tie_weights()
    for parameter in made.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    if getattr(model, "generation_config", None) is not None:
        made.generation_config = model.generation_config
    made.name_or_path = made.config._name_or_path = name
    return made


def check_complete(model: nn.Module, missing: Any, name: str) -> None:
    """Refuse a model of which the file lacks parameters.

    Raises:
        CheckpointError: the first of them are named.
    """
    if missing:
        names = sorted(missing)
        raise CheckpointError(
            f"{name} has no weights for {', '.join(names[:4])} ({len(names)} parameters of {type(model).__name__}): "
            "transformers does not know this architecture's names in GGUF; take the model as safetensors"
        )


def _damage(path: Path) -> str | None:
    """Return what is wrong with a file, None where all of it can be read."""
    from gguf import GGUFReader

    try:
        GGUFReader(path)
    except unfit() as error:
        return first_sentence(error) or type(error).__name__
    return None
