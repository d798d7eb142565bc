"""Whose padding a mask marks, where an image has as many patches as the text has tokens."""

import pytest
import torch
from tiny_models import FAMILIES, hooked
from tiny_vision_language import VISION_LANGUAGE

import fas
from fas.calibration.masks import NO_MASK, masks_of_sites
from fas.calibration.walk import walk
from fas.surgery.probe import evaluating, without_cache
from fas.surgery.replace import populations

IMAGE_SITES = ("vision_tower", "vision_model", "image_encoder", "visual", "multi_modal_projector")


def expected(name, path):
    """The mask of a site by the names that these models give their layers."""
    if any(part in path for part in IMAGE_SITES):
        return NO_MASK
    read = any(f"crossattention.self.{part}" in path for part in ("key", "operands.key", "operands.value"))
    if name == "blip_vqa" and "text_decoder" in path:
        return "attention_mask" if read else "decoder_attention_mask"
    return NO_MASK if read else "attention_mask"


@pytest.mark.parametrize(
    ("name", "coverage"),
    [*((name, "full") for name in VISION_LANGUAGE), ("blip_vqa", "linear")],
)
def test_rows_of_images_and_of_text_are_told_apart(name, coverage):
    family, batch = VISION_LANGUAGE[name], VISION_LANGUAGE[name].batch()
    model = fas.convert(family.build(), fas.FAS(coverage=coverage))
    with torch.no_grad(), model.simulation.using(network="ann"):
        found = masks_of_sites(model, batch, lambda: model(**batch))
    assert found == {site.path: expected(name, site.path) for site in model.sites}


def as_many_tokens_as_patches(name):
    """Return inputs whose mask has the shape of a tower's activations, or as many entries."""
    # Patches and a class token; patches of all images one behind the other. PaliGemma has neither.
    length = {"llava": 1, "qwen2_vl": 12, "qwen2_5_vl": 12}.get(name, 5)
    batch = VISION_LANGUAGE[name].batch(length=max(length, 2))
    if name == "llava":
        batch["input_ids"], batch["attention_mask"] = batch["input_ids"][:, :5], batch["attention_mask"][:, :5].clone()
        batch["attention_mask"][-1, -1] = 0
    if name == "blip_vqa":
        # As long as the question, with other padding.
        batch["decoder_input_ids"] = batch["labels"] = batch["input_ids"].flip(0)
        batch["decoder_attention_mask"] = batch["attention_mask"].flip(0)
    return batch


@pytest.mark.parametrize("name", VISION_LANGUAGE)
def test_padding_of_the_text_takes_nothing_of_the_image(name):
    model, batch = fas.convert(VISION_LANGUAGE[name].build(), fas.FAS()), as_many_tokens_as_patches(name)
    seen = {}

    def visit(one):
        seen[one.site.path] = one.ann
        one.population.set(torch.ones(()), torch.zeros(()), torch.tensor(0.5))

    walk(model, model.sites, [batch], visit)
    ambiguous = set()
    for path, population in populations(model).items():
        with evaluating(model), model.simulation.using(network="ann"):
            x = hooked(model, population, lambda: model(**batch, **without_cache(model)))[0].flatten(0, -2)
        mask = batch.get(expected(name, path))
        if mask is not None and mask.numel() == len(x):
            x = x[mask.flatten().bool()]
        elif len(x) == batch["attention_mask"].numel():
            ambiguous.add(path)
        # Keys and positions of a cache lie elsewhere in memory; nothing else differs.
        assert torch.equal(seen[path], x), path
    assert name == "paligemma" or any(part in path for path in ambiguous for part in IMAGE_SITES)


@pytest.mark.parametrize("name", ["gpt2", "bert_mlm", "vit", "t5"])
def test_models_of_one_kind_are_not_run(name):
    model = fas.convert(FAMILIES[name].build(), fas.FAS())
    assert masks_of_sites(model, FAMILIES[name].batch(), lambda: pytest.fail("ran")) == {}
