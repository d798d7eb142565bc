"""The models that are measured, by name: the embedded one, well-known shapes with random weights, any directory."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import transformers

from fas.errors import CheckpointError, FASError

# Shape of each random model: its configuration class and the arguments that differ from the class's defaults.
_SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2-small": ("GPT2Config", {}),
    "opt-1.3b": (
        "OPTConfig",
        {
            "hidden_size": 2048,
            "ffn_dim": 8192,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "word_embed_proj_dim": 2048,
        },
    ),
    "qwen2-small": (
        "Qwen2Config",
        {
            "hidden_size": 768,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
            "vocab_size": 50257,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        },
    ),
}

SIZES = ("embedded", *_SHAPES)


def build(size: str, *, seed: int = 0) -> Any:
    """Return a dense language model in float32, ready for inference.

    Args:
        size: one of ``SIZES``, or a model directory. Shapes get random weights.
        seed: of the random weights.

    Raises:
        CheckpointError: no such size and no such directory.
        FASError: a directory that holds no language model, or a converted one.
    """
    if size in _SHAPES:
        name, arguments = _SHAPES[size]
        return from_config(getattr(transformers, name)(**arguments), seed=seed)
    place = Path(str(files("fas"))) / "assets" / "stdlib-gpt2" if size == "embedded" else Path(size).expanduser()
    if not (place / "config.json").is_file():
        raise CheckpointError(f"no size {size!r}: choose one of {', '.join(SIZES)}, or name a model directory")
    config = transformers.AutoConfig.from_pretrained(place)
    if getattr(config, "quantization_config", None) is not None:
        raise FASError(f"{size} is converted already: name the dense model, which is converted here and measured too")
    if type(config) not in transformers.AutoModelForCausalLM._model_mapping:
        raise FASError(f"{size} is a {config.model_type}, which does not generate text token by token")
    return transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()


def from_config(config: Any, *, seed: int = 0) -> Any:
    """Return a language model with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def context(model: Any) -> int | None:
    """Return the tokens that a model takes at once, None without a limit."""
    config = model.config
    found = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return None if found is None else int(found)


def random_tokens(model: Any, rows: int, length: int, *, seed: int) -> torch.Tensor:
    """Return token ids [rows, length], every entry of the vocabulary equally likely."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (rows, length), generator=generator)
