"""Tiny random models of images and text, and batches for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

VOCABULARY = 100
IMAGE = 99
_BLOCKS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION = {**_BLOCKS, "image_size": 16, "patch_size": 8}
_TEXT = {
    "vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_LLAMA = {**_TEXT, **_BLOCKS, "num_attention_heads": 4, "num_key_value_heads": 2}
_BLIP_TEXT = {**_TEXT, **_BLOCKS, "encoder_hidden_size": 32, "sep_token_id": 2}
_ROTARY = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
_QWEN_IDS = {
    "image_token_id": IMAGE, "video_token_id": 98, "vision_start_token_id": 97, "vision_end_token_id": 96,
}  # fmt: skip
_QWEN_VISION = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}


@dataclass(frozen=True)
class VisionLanguage:
    """One architecture.

    ``parts`` are patterns of the vision tower, the projector and the language model; ``linear`` is the number of
    sites of linear coverage, counted by hand. ``marks`` is how many placeholders stand for an image in the
    text.
    """

    name: str
    model: str
    config: Callable[[], Any]
    parts: tuple[str, ...]
    mlp: tuple[str, ...]
    linear: int
    marks: int = 0
    patches: bool = False
    generates: bool = True

    def build(self, seed: int = 0) -> Any:
        """Return a model with weights three times the usual, so that its layers matter."""
        torch.manual_seed(seed)
        model = getattr(transformers, self.model)(self.config()).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(3)
        return model

    def batch(self, rows: int = 3, length: int = 6, *, seed: int = 1) -> dict[str, Tensor]:
        """Return inputs as a processor makes them; the text of the last row is two tokens shorter."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, 90, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        ids[-1, length - 2 :], mask[-1, length - 2 :] = 0, 0
        marks = torch.full((rows, self.marks), IMAGE)
        inputs = {
            "input_ids": torch.cat([marks, ids], 1),
            "attention_mask": torch.cat([torch.ones_like(marks), mask], 1),
        }
        if self.patches:
            inputs["pixel_values"] = torch.randn(rows * 16, 3 * 2 * 4 * 4, generator=generator)
            inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * rows)
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).long()
        else:
            inputs["pixel_values"] = torch.randn(rows, 3, 16, 16, generator=generator)
        if self.model == "BlipForQuestionAnswering":
            inputs["decoder_input_ids"] = inputs["labels"] = ids[:, : length - 2]
        return inputs


def _git() -> Any:
    return transformers.GitConfig(vision_config=_VISION, **_TEXT, **_BLOCKS)


def _blip() -> Any:
    # By default weights of BLIP's tower begin at 1e-10.
    vision = {**_VISION, "initializer_range": 0.02}
    return transformers.BlipConfig(text_config=_BLIP_TEXT, vision_config=vision, projection_dim=16)


def _llava() -> Any:
    return transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **_VISION},
        text_config={"model_type": "llama", **_LLAMA},
        image_token_index=IMAGE,
        image_seq_length=4,
    )


def _qwen2_vl() -> Any:
    return transformers.Qwen2VLConfig(
        text_config={**_LLAMA, "rope_parameters": _ROTARY},
        vision_config={**_QWEN_VISION, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
        **_QWEN_IDS,
    )


def _qwen2_5_vl() -> Any:
    return transformers.Qwen2_5_VLConfig(
        text_config={**_LLAMA, "rope_parameters": _ROTARY},
        vision_config={
            **_QWEN_VISION, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        **_QWEN_IDS,
    )  # fmt: skip


def _paligemma() -> Any:
    return transformers.PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", **_VISION, "vision_use_head": False},
        text_config={"model_type": "gemma", **_LLAMA, "head_dim": 8},
        image_token_index=IMAGE,
        projection_dim=32,
        hidden_size=32,
    )


def _clip() -> Any:
    return transformers.CLIPConfig(text_config={**_TEXT, **_BLOCKS}, vision_config=_VISION, projection_dim=16)


def _mlp(*stems: str) -> tuple[str, ...]:
    return tuple(stem.format(i) for stem in stems for i in range(2))


_BLIP_OUTPUT = "bert.encoder.layer.{}.output.dense"
_TOWER = "model.vision_tower.encoder.layers.{}.mlp.fc2"
_DOWN = "model.language_model.layers.{}.mlp.down_proj"

_ALL = [
    VisionLanguage(
        "git", "GitForCausalLM", _git, ("git.image_encoder.*", "git.visual_projection.*", "git.encoder.*"),
        _mlp("git.image_encoder.vision_model.encoder.layers.{}.mlp.fc2", "git.encoder.layer.{}.output.dense"),
        18,
    ),
    VisionLanguage(
        "blip", "BlipForConditionalGeneration", _blip, ("vision_model.*", "text_decoder.*"),
        _mlp("vision_model.encoder.layers.{}.mlp.fc2", f"text_decoder.{_BLIP_OUTPUT}"), 23,
    ),
    VisionLanguage(
        "blip_vqa", "BlipForQuestionAnswering", _blip, ("vision_model.*", "text_encoder.*", "text_decoder.*"),
        _mlp(
            "vision_model.encoder.layers.{}.mlp.fc2", f"text_encoder.{_BLIP_OUTPUT}".replace("bert.", ""),
            f"text_decoder.{_BLIP_OUTPUT}",
        ),
        36,
    ),
    VisionLanguage(
        "llava", "LlavaForConditionalGeneration", _llava,
        ("model.vision_tower.*", "model.multi_modal_projector.*", "model.language_model.*"),
        _mlp(_TOWER, _DOWN), 19, marks=4,
    ),
    VisionLanguage(
        "qwen2_vl", "Qwen2VLForConditionalGeneration", _qwen2_vl,
        ("model.visual.blocks.*", "model.visual.merger.*", "model.language_model.*"),
        _mlp("model.visual.blocks.{}.mlp.fc2", _DOWN), 19, marks=4, patches=True,
    ),
    VisionLanguage(
        "qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", _qwen2_5_vl,
        ("model.visual.blocks.*", "model.visual.merger.*", "model.language_model.*"),
        _mlp("model.visual.blocks.{}.mlp.down_proj", _DOWN), 19, marks=4, patches=True,
    ),
    VisionLanguage(
        "paligemma", "PaliGemmaForConditionalGeneration", _paligemma,
        ("model.vision_tower.*", "model.multi_modal_projector.*", "model.language_model.*"),
        _mlp(_TOWER, _DOWN), 18, marks=4,
    ),
    VisionLanguage(
        "clip", "CLIPModel", _clip, ("vision_model.*", "visual_projection", "text_model.*", "text_projection"),
        _mlp("vision_model.encoder.layers.{}.mlp.fc2", "text_model.encoder.layers.{}.mlp.fc2"), 18, generates=False,
    ),
]  # fmt: skip

VISION_LANGUAGE = {family.name: family for family in _ALL}


def answer(model: Any, inputs: dict[str, Tensor], **settings: Any) -> Tensor:
    """Return the logits, the similarities of images and texts, or the loss, under other settings for a while."""
    if hasattr(model, "simulation"):
        with torch.no_grad(), model.simulation.using(**settings):
            output = model(**inputs)
    else:
        with torch.no_grad():
            output = model(**inputs)
    # BlipForQuestionAnswering returns no logits.
    found: Tensor = next(output[key] for key in ("logits", "logits_per_image", "loss") if key in output)
    return found
