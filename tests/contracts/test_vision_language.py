"""What holds for models of images and text: sites in all parts, the dense model inside, generation, files."""

import fnmatch

import pytest
import torch
import transformers
from made import once
from tiny_models import linear_layers
from tiny_vision_language import IMAGE, VISION_LANGUAGE, answer

import fas
from fas.errors import FASError, SiteError
from fas.surgery.probe import probe_inputs
from fas.types import OPERANDS

# Full coverage holds the sites of the linear one.
CASES = [*((name, "full") for name in VISION_LANGUAGE), ("git", "linear"), ("qwen2_vl", "linear")]


@once
def calibrated(name, coverage="linear", **options):
    family = VISION_LANGUAGE[name]
    method = fas.FAS(coverage=coverage, timesteps=5, **options)
    return fas.convert(family.build(), method, calibration=[family.batch(), family.batch(seed=2)])


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
    model = calibrated(name, exclude=[family.parts[0]])
    tower = model.get_submodule(family.parts[0].removesuffix(".*"))
    assert linear_layers(tower)
    assert not torch.equal(answer(model, family.batch()), answer(model, family.batch(), network="ann"))


@pytest.mark.parametrize(("name", "coverage"), CASES)
def test_conversion_keeps_the_dense_model_inside(name, coverage):
    family = VISION_LANGUAGE[name]
    inputs = family.batch()
    before = answer(family.build(), inputs)
    model = calibrated(name, coverage)
    assert torch.equal(answer(model, inputs, network="ann"), before)
    collapsed = answer(model, inputs)
    assert not torch.equal(collapsed, before)
    # One formula; the native product of a few rows adds in another order than torch's.
    margin = 2e-5 * float(collapsed.abs().max())
    quantised = answer(model, inputs, network="quantised")
    torch.testing.assert_close(quantised, collapsed, rtol=1e-4, atol=margin)
    # T passes are summed instead of one.
    torch.testing.assert_close(answer(model, inputs, execution="stepped"), collapsed, rtol=1e-4, atol=margin)
    fas.revert(model)
    assert torch.equal(answer(model, inputs), before)


@pytest.mark.parametrize("name", VISION_LANGUAGE)
def test_full_coverage_reaches_all_parts(name):
    family = VISION_LANGUAGE[name]
    sites = fas.FAS(coverage="full").select(family.build())
    # Two blocks in each of two parts; BLIP's decoder looks at the image, or at the question of its encoder, as well.
    modules = {"blip": 6, "blip_vqa": 10}.get(name, 4)
    roles = [site.role for site in sites if site.role in OPERANDS]
    assert sorted(roles) == sorted([*OPERANDS] * modules)


@pytest.mark.parametrize("name", VISION_LANGUAGE)
def test_a_saved_model_comes_back_to_the_bit(name, tmp_path):
    family, inputs = VISION_LANGUAGE[name], VISION_LANGUAGE[name].batch()
    model = calibrated(name)
    model.save_pretrained(tmp_path / "snn")
    loaded = getattr(transformers, family.model).from_pretrained(tmp_path / "snn")
    assert loaded.sites == model.sites
    assert torch.equal(answer(loaded, inputs), answer(model, inputs))


def prompts(family):
    """Return inputs to go on from, of one length: right padding is for training."""
    inputs = {k: v for k, v in family.batch(rows=2).items() if k not in ("decoder_input_ids", "labels")}
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    inputs["input_ids"][-1, -2:] = 5
    return inputs


def said(model, inputs, *, schedule=None, execution=None, **options):
    settings = {key: x for key, x in {"schedule": schedule, "execution": execution}.items() if x is not None}
    fresh = {key: value.clone() for key, value in inputs.items()}  # BLIP writes into the ids
    with model.simulation.using(**settings):
        return model.generate(
            **fresh, **{"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [IMAGE], **options}
        )


@pytest.mark.parametrize("name", [name for name, family in VISION_LANGUAGE.items() if family.generates])
def test_text_is_generated_from_an_image(name):
    family = VISION_LANGUAGE[name]
    model = calibrated(name)
    inputs = prompts(family)
    ids = said(model, inputs)
    assert ids.shape[0] == 2 and torch.equal(ids, said(model, inputs, execution="stepped"))
    # What is said depends on the image: of another one the logits differ.
    other = dict(family.batch(rows=2), pixel_values=-inputs["pixel_values"])
    assert not torch.equal(answer(model, other), answer(model, family.batch(rows=2)))


def in_float64(inputs):
    return {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}


# Packed images call attention one by one, steps apart.
ONLINE = [(name, "linear" if family.patches else "full") for name, family in VISION_LANGUAGE.items()]


@pytest.mark.parametrize(("name", "coverage"), ONLINE)
def test_graded_online_spikes_are_exact(name, coverage):
    inputs = in_float64(VISION_LANGUAGE[name].batch())
    model = calibrated(name, coverage, neuron="clipped_count").double()
    # Float64; norms that compute in float32 round differently by less than a level.
    torch.testing.assert_close(answer(model, inputs, schedule="online"), answer(model, inputs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "operators"),
    [
        *((name, "difference") for name in VISION_LANGUAGE if name != "blip_vqa"),
        ("blip", "instant"),
        ("clip", "instant"),
    ],
)
def test_samples_online_do_not_know_of_each_other(name, operators):
    # Binary spikes: a row in the place of another step or sample would show.
    inputs = in_float64(VISION_LANGUAGE[name].batch())
    model = calibrated(name, schedule="online", operators=operators, neuron="signed_if").double()
    if name == "paligemma":
        # Beside a padded text the dense model sees another mask too.
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    together = answer(model, inputs)
    for row in range(3):
        own = {key: x[row * (len(x) // 3) : (row + 1) * (len(x) // 3)] for key, x in inputs.items()}
        part = together[row : row + 1] if name != "clip" else together[row : row + 1, row : row + 1]
        # Float64 products of other sizes; norms and rotary positions in float32 of the same values.
        torch.testing.assert_close(answer(model, own), part, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name, family in VISION_LANGUAGE.items() if family.generates])
def test_graded_spikes_say_the_same_online(name):
    family = VISION_LANGUAGE[name]
    model = calibrated(name, neuron="clipped_count").double()
    inputs = in_float64(prompts(family))
    for options in ({}, {"use_cache": False}, {"num_beams": 3, "num_return_sequences": 2}):
        layerwise = said(model, inputs, **options)
        assert torch.equal(said(model, inputs, schedule="online", **options), layerwise), options


def test_attention_of_one_image_at_a_time_is_refused_online():
    family = VISION_LANGUAGE["qwen2_vl"]
    model = calibrated("qwen2_vl", "full")
    with pytest.raises(FASError, match=r"model\.visual\.blocks\.0\.attn"):
        answer(model, family.batch(), schedule="online")


@pytest.mark.parametrize("name", ["blip", "blip_vqa", "qwen2_vl", "llava"])
def test_the_cache_changes_nothing_online(name):
    # Binary spikes, whose order layerwise does not tell.
    family = VISION_LANGUAGE[name]
    model = calibrated(name, schedule="online", neuron="signed_if").double()
    inputs = in_float64(prompts(family))
    for options in ({}, {"num_beams": 3}):
        assert torch.equal(said(model, inputs, **options), said(model, inputs, use_cache=False, **options))
    torch.manual_seed(5)
    drawn = said(model, inputs, do_sample=True)
    torch.manual_seed(5)
    assert torch.equal(drawn, said(model, inputs, do_sample=True, use_cache=False))


def several_images():
    """Return inputs of two texts, one with two images and one with one and padding."""
    batch = VISION_LANGUAGE["qwen2_vl"].batch(rows=3, length=4)
    one, two, three = batch["input_ids"]
    ids = torch.stack([torch.cat([one, two]), torch.cat([three, torch.zeros_like(three)])])
    mask = torch.ones_like(ids)
    mask[1, len(three) :] = 0
    kinds = (ids == IMAGE).long()
    return in_float64({**batch, "input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds})


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_texts_with_several_images(name):
    inputs = several_images()
    model = calibrated(name, neuron="clipped_count").double()
    # As above.
    torch.testing.assert_close(answer(model, inputs, schedule="online"), answer(model, inputs), rtol=1e-9, atol=1e-9)
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    assert torch.equal(said(model, inputs, schedule="online"), said(model, inputs))
    with pytest.raises(FASError, match=r"one image for every text; got 3 \(pixel_values\) for 2 texts.*'layerwise'"):
        said(model, inputs, schedule="online", num_beams=2)


def test_remembered_positions_are_those_of_the_batch():
    family = VISION_LANGUAGE["qwen2_vl"]
    model = calibrated("qwen2_vl", neuron="clipped_count").double()
    inputs = in_float64(family.batch())
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    new = {"input_ids": torch.tensor([[7], [8], [9]])}
    found = []
    for schedule in ("layerwise", "online"):
        with torch.no_grad(), model.simulation.using(schedule=schedule):
            cache = model(**inputs, use_cache=True).past_key_values
            assert model.model.rope_deltas.shape == (3, 1)
            # Positions follow from what the first call has left.
            found.append(model(**new, past_key_values=cache).logits)
            assert model.model.rope_deltas.shape == (3, 1)
    # As above.
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


def test_every_image_is_compared_with_every_text_of_its_step():
    family = VISION_LANGUAGE["clip"]
    model = calibrated("clip", neuron="clipped_count").double()
    inputs = in_float64(family.batch())
    inputs["pixel_values"] = inputs["pixel_values"][:2]
    with torch.no_grad():
        layerwise = model(**inputs)
        model.schedule = "online"
        online, as_tuple = model(**inputs), model(**inputs, return_dict=False)
        steps = model.simulation.timesteps
        with model.simulation.using(operators="instant"):
            instant, per_step = model(**inputs), model.logits_per_step(**inputs)
        # By its definition, with the time steps in the batch by hand: step t of an image meets step t of a text.
        rows = {key: value.repeat(steps, *[1] * (value.ndim - 1)) for key, value in inputs.items()}
        with model.simulation.using(operators="instant"), model.simulation.running(range(1, steps + 1)):
            every = model(**rows).logits_per_image.view(steps, 2, steps, 3)
    assert online.logits_per_image.shape == (2, 3) and online.text_embeds.shape[0] == 3
    for name in ("logits_per_image", "logits_per_text", "image_embeds", "text_embeds"):
        # As above.
        torch.testing.assert_close(online[name], layerwise[name], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(as_tuple[0], online.logits_per_image, rtol=0, atol=0)
    expected = sum(every[t, :, t] for t in range(steps)) / steps
    torch.testing.assert_close(instant.logits_per_image, expected)
    torch.testing.assert_close(
        per_step, torch.stack([every[: t + 1, :, : t + 1].diagonal(0, 0, 2).mean(-1) for t in range(steps)])
    )
    assert not torch.allclose(instant.logits_per_image, layerwise.logits_per_image)
    with pytest.raises(ValueError, match=r"CLIPModel compares the samples.*without return_loss"):
        model(**inputs, return_loss=True)


@pytest.mark.parametrize("name", ["blip", "blip_vqa"])
def test_a_part_computes_its_own_loss_online(name):
    family = VISION_LANGUAGE[name]
    model = calibrated(name, neuron="clipped_count").double()
    inputs = in_float64(family.batch())
    inputs.setdefault("labels", inputs["input_ids"])
    loss = {s: answer_loss(model, inputs, schedule=s) for s in ("layerwise", "online")}
    # As above.
    torch.testing.assert_close(loss["online"], loss["layerwise"], rtol=1e-9, atol=1e-9)
    with torch.no_grad(), model.simulation.using(schedule="online"):
        assert torch.equal(model(**inputs, return_dict=False)[0], loss["online"])


def answer_loss(model, inputs, **settings):
    with torch.no_grad(), model.simulation.using(**settings):
        return model(**inputs).loss


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
    model = calibrated("paligemma")
    assert model.config.get_text_config().use_cache is True
