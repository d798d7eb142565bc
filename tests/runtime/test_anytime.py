import pytest
import torch
from tiny_models import FAMILIES
from tiny_vision_language import VISION_LANGUAGE
from transformers import DynamicCache

import fas

IDS = torch.tensor([[3, 7, 9, 4], [5, 6, 8, 2]])


@pytest.fixture
def model():
    dense = FAMILIES["gpt2"].build()
    data = [{"input_ids": torch.randint(1, 64, (4, 16))}]
    return fas.convert(dense, fas.FAS(timesteps=4, schedule="online", neuron="signed_if"), calibration=data)


def generate(model, **arguments):
    return model.generate(IDS, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0, **arguments)


@pytest.mark.parametrize("operators", ["difference", "instant"])
def test_without_early_stops_it_is_the_online_schedule(model, operators):
    model.operators = operators
    anytime = fas.Anytime(float("inf"))
    assert torch.equal(generate(model, custom_generate=anytime), generate(model))
    assert anytime.steps == [4] * 6


def test_any_lead_stops_after_one_step(model):
    anytime = fas.Anytime(0.0)
    assert generate(model, custom_generate=anytime).shape == (2, 10)
    assert anytime.mean_steps == 1.0


def test_left_padding_does_not_change_a_row(model):
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), IDS[:1]], dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    common = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = model.generate(IDS[:1], custom_generate=fas.Anytime(float("inf")), **common)
    shifted = model.generate(padded, attention_mask=mask, custom_generate=fas.Anytime(float("inf")), **common)
    assert torch.equal(plain, shifted[:, 2:])


def test_what_it_refuses(model):
    with pytest.raises(ValueError, match="margin is -1"):
        fas.Anytime(-1)
    model.schedule = "layerwise"
    with pytest.raises(ValueError, match=r"set model\.schedule = 'online'"):
        generate(model, custom_generate=fas.Anytime(1.0))


def test_images_are_refused():
    family = VISION_LANGUAGE["llava"]
    model = fas.convert(
        family.build(), fas.FAS(timesteps=2, schedule="online", neuron="signed_if"), calibration=[family.batch()]
    )
    with pytest.raises(ValueError, match="reads text alone, and got pixel_values"):
        model.generate(**family.batch(), max_new_tokens=2, custom_generate=fas.Anytime(1.0))


def leads(model):
    """How far the likeliest token of each row is ahead after every step, [T, rows]."""
    with torch.no_grad():
        steps = torch.stack([answer[:, -1] for answer in model.logits_per_step(input_ids=IDS)])
    best = steps.topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


@pytest.mark.parametrize("operators", ["difference", "instant"])
@pytest.mark.parametrize("share", [0.5, 1.01])
def test_a_window_ends_where_the_running_answer_leads(model, operators, share):
    model.operators = operators
    ahead = leads(model).min(1).values.tolist()
    margin = share * ahead[0]
    expected = next((t for t, lead in enumerate(ahead, 1) if lead >= margin), 4)
    anytime = fas.Anytime(margin)
    model.generate(IDS, max_new_tokens=1, do_sample=False, pad_token_id=0, custom_generate=anytime)
    assert anytime.steps == [expected] and (expected == 1) == (share < 1)


def answered(model, anytime, running):
    caches = [DynamicCache(config=model.config) for _ in range(4)]
    with torch.no_grad():
        anytime._answer(model, IDS, torch.ones_like(IDS), None, caches, IDS.shape[1], torch.tensor(running))
    return [cache.get_seq_length() for cache in caches]


def test_rows_that_have_ended_do_not_decide_and_no_cache_falls_behind(model):
    first = leads(model)[0]
    margin, clear = float(first.mean()), int(first.argmax())
    for running, stops in (([clear == 0, clear == 1], True), ([True, True], False)):
        anytime = fas.Anytime(margin)
        assert answered(model, anytime, running) == [4] * 4
        assert (anytime.steps[0] == 1) == stops
