"""Tiny random models of every architecture that is tested, and batches for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 100
# Widths differ from each other, so that a swapped dimension shows.
_BERT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_LLAMA = {**_BERT, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
_T5 = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}


@dataclass(frozen=True)
class Family:
    """One architecture.

    ``mlp`` names the layer behind the MLP activation of both blocks (of encoder and decoder where there
    are two); ``linear`` is the number of sites of full coverage, counted by hand: query, key and value
    share one, and so do gate and up.
    """

    name: str
    model: str
    config: str
    auto: str
    mlp: str
    linear: int
    options: dict[str, Any] = field(default_factory=dict)
    activation: str | None = None
    once: bool = False

    @property
    def mlp_paths(self) -> list[str]:
        paths = self.mlp.split(" ")
        return paths if self.once else [path.format(i) for path in paths for i in range(2)]

    @property
    def causal(self) -> bool:
        return self.auto == "AutoModelForCausalLM"

    @property
    def seq2seq(self) -> bool:
        return self.auto == "AutoModelForSeq2SeqLM"

    @property
    def image(self) -> bool:
        return self.auto == "AutoModelForImageClassification"

    def build(self, seed: int = 0, **options: Any) -> Any:
        """Return a model with weights three times the usual, so that its layers matter."""
        torch.manual_seed(seed)
        vocabulary = {} if self.image else {"vocab_size": VOCABULARY}
        config = getattr(transformers, self.config)(**{**vocabulary, **self.options, **options})
        model = getattr(transformers, self.model)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(3)
        return model

    def batch(self, rows: int = 3, length: int = 9, *, padded: bool = False, seed: int = 1) -> dict[str, Tensor]:
        """Return inputs; ``padded`` masks the end of the first row."""
        generator = torch.Generator().manual_seed(seed)
        if self.image:
            return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=generator)}
        ids = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        if padded:
            mask[0, length - 4 :] = 0
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.seq2seq:
            inputs["decoder_input_ids"] = torch.randint(3, VOCABULARY, (rows, length - 3), generator=generator)
        return inputs


def _causal(name: str, model: str, config: str, mlp: str, linear: int = 9, **options: Any) -> Family:
    activation = "model.decoder.layers.0.activation_fn" if name == "opt" else None
    return Family(name, model, config, "AutoModelForCausalLM", mlp, linear, options, activation)


_DOWN = "model.layers.{}.mlp.down_proj"
_HEADS_8 = {**_LLAMA, "head_dim": 8}
_ENCODER_OUTPUT = "encoder.layer.{}.output.dense"
_T5_OUTPUT = "encoder.block.{}.layer.1.DenseReluDense.wo decoder.block.{}.layer.2.DenseReluDense.wo"

_ALL = [
    _causal(
        "gpt2", "GPT2LMHeadModel", "GPT2Config", "transformer.h.{}.mlp.c_proj",
        n_embd=32, n_layer=2, n_head=2, n_positions=64, n_inner=48, bos_token_id=0, eos_token_id=0,
    ),
    _causal(
        "opt", "OPTForCausalLM", "OPTConfig", "model.decoder.layers.{}.fc2", 11,
        hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64,
        word_embed_proj_dim=16, pad_token_id=1,
    ),
    _causal(
        "gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", "gpt_neox.layers.{}.mlp.dense_4h_to_h",
        **_BERT, max_position_embeddings=64,
    ),
    _causal("llama", "LlamaForCausalLM", "LlamaConfig", _DOWN, **_LLAMA),
    _causal("mistral", "MistralForCausalLM", "MistralConfig", _DOWN, **_LLAMA, sliding_window=4),
    _causal("qwen2", "Qwen2ForCausalLM", "Qwen2Config", _DOWN, **_LLAMA),
    _causal("qwen3", "Qwen3ForCausalLM", "Qwen3Config", _DOWN, **_HEADS_8),
    _causal("gemma", "GemmaForCausalLM", "GemmaConfig", _DOWN, **_HEADS_8),
    _causal(
        "gemma3", "Gemma3ForCausalLM", "Gemma3TextConfig", _DOWN, **_HEADS_8, sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    ),
    _causal(
        "bloom", "BloomForCausalLM", "BloomConfig", "transformer.h.{}.mlp.dense_4h_to_h",
        hidden_size=32, n_layer=2, n_head=2,
    ),
    Family(
        "bert_mlm", "BertForMaskedLM", "BertConfig", "AutoModelForMaskedLM", f"bert.{_ENCODER_OUTPUT}", 10, _BERT
    ),
    Family(
        "bert_classifier", "BertForSequenceClassification", "BertConfig",
        "AutoModelForSequenceClassification", f"bert.{_ENCODER_OUTPUT}", 10, _BERT,
    ),
    Family(
        "roberta", "RobertaForSequenceClassification", "RobertaConfig",
        "AutoModelForSequenceClassification", f"roberta.{_ENCODER_OUTPUT}", 10,
        {**_BERT, "max_position_embeddings": 66},
    ),
    Family(
        "distilbert", "DistilBertForSequenceClassification", "DistilBertConfig",
        "AutoModelForSequenceClassification", "distilbert.transformer.layer.{}.ffn.lin2", 10,
        {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2},
    ),
    # One block, run twice.
    Family(
        "albert", "AlbertForMaskedLM", "AlbertConfig", "AutoModelForMaskedLM",
        "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn_output", 7,
        {**_BERT, "embedding_size": 16}, once=True,
    ),
    Family(
        "t5", "T5ForConditionalGeneration", "T5Config", "AutoModelForSeq2SeqLM", _T5_OUTPUT, 22, _T5,
        "encoder.block.0.layer.1.DenseReluDense.act",
    ),
    Family(
        "t5_gated", "T5ForConditionalGeneration", "T5Config", "AutoModelForSeq2SeqLM", _T5_OUTPUT, 22,
        {**_T5, "feed_forward_proj": "gated-gelu"},
    ),
    Family(
        "bart", "BartForConditionalGeneration", "BartConfig", "AutoModelForSeq2SeqLM",
        "model.encoder.layers.{}.fc2 model.decoder.layers.{}.fc2", 22,
        {
            "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_layers": 2,
            "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
            "max_position_embeddings": 64,
        },
    ),
    Family(
        "vit", "ViTForImageClassification", "ViTConfig", "AutoModelForImageClassification",
        "vit.layers.{}.mlp.fc2", 9, {**_BERT, "image_size": 16, "patch_size": 8},
    ),
]  # fmt: skip

FAMILIES = {family.name: family for family in _ALL}


def linear_layers(model: nn.Module) -> set[str]:
    """Return the dotted names of all dense linear layers."""
    return {
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }


def logits(model: Any, inputs: dict[str, Tensor], **settings: Any) -> Tensor:
    """Return the logits under other settings (``network``, ``schedule``, …), which are put back."""
    with torch.no_grad(), model.simulation.using(**settings):
        answer: Tensor = model(**inputs).logits
    return answer


class Counts:
    """An observer that keeps the spikes per neuron over the whole window, call by call."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Tensor]] = {}

    def observe(self, path: str, spikes: Tensor, timesteps: int) -> None:
        self.calls.setdefault(path, []).append(spikes.sum(0))


def spike_counts(model: Any, inputs: dict[str, Tensor], **settings: Any) -> dict[str, list[Tensor]]:
    """Return spikes per neuron of every call of every site."""
    seen = Counts()
    logits(model, inputs, observers=[seen], **settings)
    return seen.calls


def hooked(model: nn.Module, module: nn.Module, run: Callable[[], Any]) -> list[Tensor]:
    """Return the first argument of every call of a module during a run."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach().clone()))
    try:
        run()
    finally:
        handle.remove()
    return seen
