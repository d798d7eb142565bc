"""A tiny LLaMA as a GGUF file, written here with the package gguf."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy
import torch
from gguf.quants import dequantize, quantize
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

HEADS = 2
WORDS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "<s>", "</s>"]
BOS, EOS = len(WORDS) - 2, len(WORDS) - 1
_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def llama(*, tied: bool) -> LlamaForCausalLM:
    """Return the model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, max_position_embeddings=64, bos_token_id=BOS, eos_token_id=EOS,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def write_gguf(
    file: Path,
    model: LlamaForCausalLM,
    *,
    architecture: str = "llama",
    add_bos: bool = False,
    without: tuple[str, ...] = (),
) -> LlamaForCausalLM:
    """Write matrices in Q8_0 and the rest in float32; give the model the values that the file then holds."""
    config, writer = model.config, gguf.GGUFWriter(file, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(WORDS)
    writer.add_token_types([gguf.TokenType.NORMAL] * BOS + [gguf.TokenType.CONTROL] * 2)
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(add_bos)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = parameter.numpy().copy()
            if tensor.ndim == 2:
                stored = quantize(_in_file(name, tensor), gguf.GGMLQuantizationType.Q8_0)
                parameter.copy_(torch.tensor(quantised_values(tensor)))
                if _name(name) not in without:
                    writer.add_tensor(_name(name), stored, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            elif _name(name) not in without:
                writer.add_tensor(_name(name), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def quantised_values(tensor: numpy.ndarray) -> numpy.ndarray:
    """Return a matrix as Q8_0 holds it; rows are quantised by themselves, in whichever order they are stored."""
    kind = gguf.GGMLQuantizationType.Q8_0
    return dequantize(quantize(tensor, kind), kind)


def _name(name: str) -> str:
    parts = name.removesuffix(".weight").removeprefix("model.")
    if parts.startswith("layers."):
        _, number, rest = parts.split(".", 2)
        return f"blk.{number}.{_NAMES[rest]}.weight"
    return {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[parts] + ".weight"


def _in_file(name: str, tensor: numpy.ndarray) -> numpy.ndarray:
    """Put the rows of queries and keys in the order of llama.cpp, which rotates neighbours."""
    if "q_proj" not in name and "k_proj" not in name:
        return tensor
    rows = tensor.shape[0]
    pairs = tensor.reshape(HEADS, 2, rows // HEADS // 2, -1).swapaxes(1, 2)
    return numpy.ascontiguousarray(pairs.reshape(tensor.shape))
