"""Write a checkpoint of a given shape with random weights, in shards, without ever holding it in memory.

    python tools/write_random_checkpoint.py opt-6.7b /tmp/opt-6.7b
    python tools/write_random_checkpoint.py path/to/config.json /tmp/model --dtype float32 --shard-size 256MiB

For measurements of memory and time only: what such a model says means nothing. Matrices are drawn as σ = 0.02,
gains are one and biases zero, so that activations stay finite at any depth.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

# From the configurations published with OPT (Zhang et al. 2022, arXiv 2205.01068) and Llama 2 (Touvron et al. 2023,
# arXiv 2307.09288).
_OPT = {"model_type": "opt", "architectures": ["OPTForCausalLM"], "vocab_size": 50272, "max_position_embeddings": 2048}
_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "rms_norm_eps": 1e-5}
SHAPES: dict[str, dict[str, Any]] = {
    "opt-125m": {**_OPT, "hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "opt-1.3b": {**_OPT, "hidden_size": 2048, "ffn_dim": 8192, "num_hidden_layers": 24, "num_attention_heads": 32},
    "opt-6.7b": {**_OPT, "hidden_size": 4096, "ffn_dim": 16384, "num_hidden_layers": 32, "num_attention_heads": 32},
    "opt-66b": {**_OPT, "hidden_size": 9216, "ffn_dim": 36864, "num_hidden_layers": 64, "num_attention_heads": 72},
    "llama-2-7b": {
        **_LLAMA, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    },
    "llama-2-70b": {
        **_LLAMA, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}  # fmt: skip
_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def write(description: dict[str, Any], out: Path, *, dtype: torch.dtype, shard_size: int, seed: int = 0) -> int:
    """Write config.json, the shards and their index.

    Args:
        description: what config.json says; ``architectures`` names the class.
        out: a new directory.
        dtype: of the weights.
        shard_size: bytes of a shard; a larger tensor has one for itself.
        seed: of the weights.

    Returns:
        Bytes of weights written.
    """
    out.mkdir(parents=True)
    config = transformers.AutoConfig.for_model(**description)
    config.dtype = dtype
    config.architectures = description["architectures"]
    with torch.device("meta"):
        model: Any = getattr(transformers, config.architectures[0])._from_config(config, dtype=dtype)
    shards = list(_shards(model, shard_size))
    generator = torch.Generator().manual_seed(seed)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _random(name, like, generator) for name, like in shard.items()}
        save_file(tensors, out / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
        print(f"{file}: {len(shard)} tensors", flush=True)
    size = sum(x.numel() * x.element_size() for shard in shards for x in shard.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    config.save_pretrained(out)
    return size


def _shards(model: Any, size: int) -> Iterator[dict[str, Tensor]]:
    """Group the parameters of a model, those with two names once."""
    shard: dict[str, Tensor] = {}
    held = 0
    for name, like in model.state_dict().items():
        if name in model.all_tied_weights_keys:
            continue
        extent = like.numel() * like.element_size()
        if shard and held + extent > size:
            yield shard
            shard, held = {}, 0
        shard[name] = like
        held += extent
    yield shard


def _random(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    if like.ndim == 1:
        return torch.full(like.shape, 1.0 if name.endswith("weight") else 0.0, dtype=like.dtype)
    # In the dtype itself: a copy in float32 would be twice as large as the tensor.
    return torch.empty(like.shape, dtype=like.dtype).normal_(0, 0.02, generator=generator)


def _bytes(text: str) -> int:
    for unit, factor in _UNITS.items():
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * factor)
    raise argparse.ArgumentTypeError(f"{text!r} is no size: write 512MiB or 2GiB")


def main() -> None:
    """Write one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shape", help=f"a config.json, or one of {', '.join(SHAPES)}")
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--shard-size", type=_bytes, default="1GiB", help="default: 1GiB")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.shape in SHAPES:
        description = SHAPES[arguments.shape]
    else:
        description = json.loads(Path(arguments.shape).read_text(encoding="utf-8"))
    dtype = getattr(torch, arguments.dtype)
    size = write(description, arguments.out, dtype=dtype, shard_size=arguments.shard_size, seed=arguments.seed)
    print(f"{size / 2**30:.2f} GiB written to {arguments.out}")


if __name__ == "__main__":
    main()
