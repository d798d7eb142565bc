"""Pictures of one colour, and processors of images and text with a vocabulary of whole words, built here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GitProcessor, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

WORDS = ("<pad>", "<s>", "</s>", "a", "red", "green", "blue", "square", "what", "is", "this", "?", "USER:", "SAYS:")
# The tiny models are random: whatever they say has to be a word.
WORDS += tuple(f"word{i}" for i in range(len(WORDS), 98))
COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


def tokenizer(*marks: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of words that begins with <s>; marks are special tokens from 99 down."""
    vocabulary = {word: i for i, word in enumerate(WORDS)} | {mark: 99 - i for i, mark in enumerate(marks)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=list(marks),
        model_input_names=["input_ids", "attention_mask"],
    )


def image_processor() -> CLIPImageProcessorPil:
    """Return a processor that makes images of 16 by 16."""
    return CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False)


def git_processor() -> GitProcessor:
    """Return the processor of the tiny GIT."""
    return GitProcessor(image_processor(), tokenizer())


def llava_processor(chat_template: str | None = None) -> LlavaProcessor:
    """Return the processor of the tiny LLaVA: four placeholders for an image."""
    return LlavaProcessor(
        image_processor(), tokenizer("<image>"), patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, image_token="<image>", chat_template=chat_template,
    )  # fmt: skip


def write_pictures(folder: Path) -> tuple[Path, Path]:
    """Write one picture of each colour, and rows of captions and of questions."""
    rows: dict[str, list[dict[str, Any]]] = {"captions.jsonl": [], "questions.jsonl": []}
    for name, colour in COLOURS.items():
        Image.new("RGB", (20, 16), colour).save(folder / f"{name}.png")
        rows["captions.jsonl"].append({"image": f"{name}.png", "captions": [f"a {name} square"]})
        rows["questions.jsonl"].append({"image": f"{name}.png", "question": "what is this ?", "answers": name})
    for file, records in rows.items():
        (folder / file).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / "captions.jsonl", folder / "questions.jsonl"
