"""transformers' pipelines on converted directories: the answers are those of the loaded model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, VOCABULARY
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedTokenizerFast,
    ViTImageProcessor,
    pipeline,
)

import fas
from fas.runtime.transformers_ import ConvertedModel


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of words, ``w7`` being token 7."""
    words = {f"w{i}": i for i in range(3, VOCABULARY)} | {"[PAD]": 0, "[UNK]": 1, "[MASK]": 2}
    built = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=built, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]", model_max_length=32
    )


def saved(name: str, place: Any, **options: Any) -> Any:
    family = FAMILIES[name]
    model = fas.convert(family.build(), fas.FAS(timesteps=4, **options), calibration=[family.batch()])
    model.save_pretrained(place)
    if family.image:
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(place)
    else:
        tokenizer().save_pretrained(place)
    return model


@pytest.mark.parametrize("schedule", ["layerwise", "online"])
def test_text_generation(tmp_path, schedule):
    model = saved("gpt2", tmp_path, schedule=schedule, neuron="signed_if")
    run = pipeline("text-generation", model=str(tmp_path))
    assert isinstance(run.model, ConvertedModel) and run.model.schedule == schedule
    # A batch of two lengths, padded on the left, and the same one by one.
    run.tokenizer.padding_side = "left"
    told = run(["w5 w6 w7", "w8"], max_new_tokens=5, do_sample=False, batch_size=2, return_full_text=False)
    for answer, ids in zip(told, ([5, 6, 7], [8]), strict=True):
        wanted = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=5,
            do_sample=False,
        )
        assert answer[0]["generated_text"].split() == run.tokenizer.decode(wanted[0, len(ids) :]).split()


def test_fill_mask(tmp_path):
    model = saved("bert_mlm", tmp_path)
    found = pipeline("fill-mask", model=str(tmp_path), top_k=3)("w5 [MASK] w7 w9")
    with torch.no_grad():
        odds = model(input_ids=torch.tensor([[5, 2, 7, 9]])).logits[0, 1].softmax(-1)
    best = odds.topk(3)
    assert [entry["token"] for entry in found] == best.indices.tolist()
    assert [entry["score"] for entry in found] == pytest.approx(best.values.tolist(), rel=1e-5)  # softmax in float32


@pytest.mark.parametrize("schedule", ["layerwise", "online"])
def test_text_classification(tmp_path, schedule):
    model = saved("bert_classifier", tmp_path, schedule=schedule, neuron="signed_if")
    found = pipeline("text-classification", model=str(tmp_path), top_k=None)(["w5 w6 w7", "w8"], batch_size=2)
    for answer, ids in zip(found, ([5, 6, 7], [8]), strict=True):
        with torch.no_grad():
            odds = model(input_ids=torch.tensor([ids])).logits[0].softmax(-1)
        scores = {entry["label"]: entry["score"] for entry in answer}
        # Padding changes the order of sums in attention.
        assert [scores[f"LABEL_{i}"] for i in range(len(odds))] == pytest.approx(odds.tolist(), rel=1e-4)


def test_image_classification(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed: pip install 'fas[images]'")
    model = saved("vit", tmp_path)
    run = pipeline("image-classification", model=str(tmp_path), top_k=None)
    pixels = torch.arange(16 * 16 * 3, dtype=torch.uint8).view(16, 16, 3)
    picture = image.fromarray(pixels.numpy())
    scores = {entry["label"]: entry["score"] for entry in run(picture)}
    with torch.no_grad():
        odds = model(**run.image_processor(picture, return_tensors="pt")).logits[0].softmax(-1)
    assert [scores[f"LABEL_{i}"] for i in range(len(odds))] == pytest.approx(odds.tolist(), rel=1e-5)


def test_feature_extraction(tmp_path):
    family = FAMILIES["bert_mlm"]
    model = fas.convert(
        AutoModel.from_config(family.build().config), fas.FAS(timesteps=4), calibration=[family.batch()]
    )
    model.eval().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    found = pipeline("feature-extraction", model=str(tmp_path))("w5 w6 w7", return_tensors=True)
    with torch.no_grad():
        assert torch.equal(found, model(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state)


@pytest.mark.parametrize("schedule", ["layerwise", "online"])
def test_a_static_cache(schedule):
    family = FAMILIES["llama"]
    method = fas.FAS(timesteps=4, schedule=schedule, neuron="signed_if")
    model = fas.convert(family.build(), method, calibration=[family.batch()])
    inputs = family.batch(2, 6)
    options = {"max_new_tokens": 6, "do_sample": False}
    wanted = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, **options, cache_implementation="static", disable_compile=True), wanted)


def test_continuous_batching():
    family = FAMILIES["llama"]
    model = fas.convert(family.build(), fas.FAS(timesteps=4, neuron="signed_if"), calibration=[family.batch()])
    model.generation_config.eos_token_id = None
    requests = [[5, 6, 7], [8]]
    settings = GenerationConfig(max_new_tokens=5, do_sample=False, pad_token_id=0)
    # Left to itself the cache takes most of the machine's memory.
    small = ContinuousBatchingConfig(num_blocks=8, block_size=16, max_batch_tokens=32)
    found = model.generate_batch(inputs=requests, generation_config=settings, continuous_batching_config=small)
    for ids, answer in zip(requests, found.values(), strict=True):
        wanted = model.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False)
        assert answer.generated_tokens == wanted[0, len(ids) :].tolist()
    model.schedule = "online"
    with pytest.raises(ValueError, match=r"repeated for each of 4 steps: set model\.schedule = 'layerwise'"):
        model.generate_batch(inputs=requests, generation_config=settings)
