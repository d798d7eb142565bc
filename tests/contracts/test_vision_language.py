"""What holds for models of images and text: sites in all parts, the dense model inside, generation, files."""

import fnmatch

import pytest
import torch
import transformers
from tiny_models import linear_layers
from tiny_vision_language import VISION_LANGUAGE, answer

import fas
from fas.errors import FASError, SiteError
from fas.surgery.probe import probe_inputs
from fas.types import OPERANDS

CASES = [
    pytest.param(name, coverage, id=f"{name}-{coverage}")
    for name, family in VISION_LANGUAGE.items()
    for coverage in ("linear", "full")
    if family.full or coverage != "full"
]


def calibrated(family, coverage="linear", model=None, **options):
    model = family.build() if model is None else model
    method = fas.FAS(coverage=coverage, timesteps=5, **options)
    return fas.convert(model, method, calibration=[family.batch(), family.batch(seed=2)])


@pytest.mark.parametrize("name", VISION_LANGUAGE)
def test_sites_are_in_all_parts(name):
    family = VISION_LANGUAGE[name]
    model = family.build()
    mlp = fas.FAS(coverage="mlp").select(model)
    assert [site.path for site in mlp] == list(family.mlp)
    sites = fas.FAS(coverage="linear").select(model)
    layers = [path for site in sites for path in site.layers]
    assert len(layers) == len(set(layers)) and set(layers) == linear_layers(model)
    assert len(sites) == family.linear
    for part in family.parts:
        assert fnmatch.filter(layers, part)


@pytest.mark.parametrize("name", VISION_LANGUAGE)
def test_a_probe_from_the_data_finds_the_same_sites(name):
    family = VISION_LANGUAGE[name]
    model = family.build()
    assert fas.FAS().select(model, family.batch()) == fas.FAS().select(model)


@pytest.mark.parametrize("name", VISION_LANGUAGE)
def test_any_part_can_be_left_dense(name):
    family = VISION_LANGUAGE[name]
    for part in family.parts:
        layers = [path for site in fas.FAS(exclude=[part]).select(family.build()) for path in site.layers]
        assert layers and not fnmatch.filter(layers, part)
    model = calibrated(family, exclude=[family.parts[0]])
    tower = model.get_submodule(family.parts[0].removesuffix(".*"))
    assert linear_layers(tower)
    assert not torch.equal(answer(model, family.batch()), answer(model, family.batch(), network="ann"))


@pytest.mark.parametrize(("name", "coverage"), CASES)
def test_conversion_keeps_the_dense_model_inside(name, coverage):
    family = VISION_LANGUAGE[name]
    model, inputs = family.build(), family.batch()
    before = answer(model, inputs)
    calibrated(family, coverage, model)
    assert torch.equal(answer(model, inputs, network="ann"), before)
    collapsed = answer(model, inputs)
    assert not torch.equal(collapsed, before)
    # One formula; the native product of a few rows adds in another order than torch's.
    margin = 2e-5 * float(collapsed.abs().max())
    quantised = answer(model, inputs, network="quantised", levels=5)
    torch.testing.assert_close(quantised, collapsed, rtol=1e-4, atol=margin)
    # T passes are summed instead of one.
    torch.testing.assert_close(answer(model, inputs, execution="stepped"), collapsed, rtol=1e-4, atol=margin)
    fas.revert(model)
    assert torch.equal(answer(model, inputs), before)


@pytest.mark.parametrize("name", [name for name, family in VISION_LANGUAGE.items() if family.full])
def test_full_coverage_reaches_both_towers(name):
    family = VISION_LANGUAGE[name]
    sites = fas.FAS(coverage="full").select(family.build())
    assert [site.role for site in sites if site.role in OPERANDS] == [*OPERANDS] * 4


@pytest.mark.parametrize("name", [name for name, family in VISION_LANGUAGE.items() if not family.full])
def test_full_coverage_is_refused_where_attention_cannot_be_reached(name):
    with pytest.raises(SiteError, match=r"computes attention by itself.*coverage 'linear'"):
        fas.FAS(coverage="full").select(VISION_LANGUAGE[name].build())


@pytest.mark.parametrize("name", VISION_LANGUAGE)
def test_a_saved_model_comes_back_to_the_bit(name, tmp_path):
    family, inputs = VISION_LANGUAGE[name], VISION_LANGUAGE[name].batch()
    model = calibrated(family)
    model.save_pretrained(tmp_path / "snn")
    loaded = getattr(transformers, family.model).from_pretrained(tmp_path / "snn")
    assert loaded.sites == model.sites
    assert torch.equal(answer(loaded, inputs), answer(model, inputs))


@pytest.mark.parametrize("name", [name for name, family in VISION_LANGUAGE.items() if family.generates])
def test_text_is_generated_from_an_image(name):
    family = VISION_LANGUAGE[name]
    model = calibrated(family)
    inputs = {k: v for k, v in family.batch(rows=2).items() if k not in ("decoder_input_ids", "labels")}
    # Of one length: right padding is for training.
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    inputs["input_ids"][-1, -2:] = 5

    def run(**settings):
        fresh = {key: value.clone() for key, value in inputs.items()}  # BLIP writes into the ids
        with model.simulation.using(**settings):
            return model.generate(**fresh, max_new_tokens=4, do_sample=False)

    ids = run()
    assert ids.shape[0] == 2 and torch.equal(ids, run(execution="stepped"))
    # What is said depends on the image: of another one the logits differ.
    other = dict(family.batch(rows=2), pixel_values=-inputs["pixel_values"])
    assert not torch.equal(answer(model, other), answer(model, family.batch(rows=2)))


@pytest.mark.parametrize("name", ["llava", "paligemma", "git", "blip"])
def test_graded_online_spikes_are_exact(name):
    family, inputs = VISION_LANGUAGE[name], VISION_LANGUAGE[name].batch()
    model = calibrated(family, neuron="clipped_count").double()
    inputs["pixel_values"] = inputs["pixel_values"].double()
    # Float64; norms that compute in float32 round differently by less than a level.
    torch.testing.assert_close(answer(model, inputs, schedule="online"), answer(model, inputs), rtol=1e-9, atol=1e-9)


def test_comparing_samples_with_each_other_is_refused_online():
    family = VISION_LANGUAGE["clip"]
    model = calibrated(family)
    with pytest.raises(FASError, match=r"every image with every text.* model\.schedule = 'layerwise'"):
        answer(model, family.batch(), schedule="online")


@pytest.mark.parametrize("name", ["git", "llava", "qwen2_vl"])
def test_the_made_up_probe(name):
    family = VISION_LANGUAGE[name]
    inputs = probe_inputs(family.build())
    assert set(inputs) == set(family.batch()) - {"attention_mask"}
    assert int((inputs["input_ids"] == 99).sum()) == family.marks
    assert inputs["input_ids"].shape == (1, 4 + family.marks)


def test_a_model_that_wants_more_asks_for_a_probe():
    class Demanding(transformers.GitForCausalLM):
        def forward(self, input_ids=None, pixel_values=None, boxes=None, **named):
            if boxes is None:
                raise ValueError("boxes are missing")
            return super().forward(input_ids=input_ids, pixel_values=pixel_values, **named)

    model = Demanding(VISION_LANGUAGE["git"].config()).eval()
    with pytest.raises(SiteError, match=r"does not run \(ValueError: boxes are missing\): pass probe="):
        fas.FAS().select(model)
    batch = VISION_LANGUAGE["git"].batch()
    assert len(fas.FAS().select(model, {**batch, "boxes": torch.ones(1)})) == 18


def test_parts_get_their_cache_back():
    family = VISION_LANGUAGE["paligemma"]
    model = calibrated(family)
    assert model.config.get_text_config().use_cache is True
