"""generate: greedy, sampled, beams, padded, streamed; with the cache the same as without."""

import pytest
import torch
from made import once
from tiny_models import FAMILIES
from transformers import TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

import fas

# Layerwise, and online with both kinds of operators.
MODES = [("layerwise", "difference"), ("online", "difference"), ("online", "instant")]


@once
def converted(name, schedule="layerwise", operators="difference", neuron="signed_if", **options):
    # Float64: a cache sums in another order, and no sum lies that near to a level or a second-best token.
    family = FAMILIES[name]
    method = fas.FAS(timesteps=3, schedule=schedule, operators=operators, neuron=neuron, **options)
    return fas.convert(family.build(), method, calibration=[family.batch(seed=3)]).double()


def generate(model, ids, mask=None, new=5, **options):
    mask = torch.ones_like(ids) if mask is None else mask
    options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": new, "min_new_tokens": new, **options}
    return model.generate(input_ids=ids, attention_mask=mask, **options)


def prompts(rows=2, length=6, seed=4):
    return torch.randint(3, 100, (rows, length), generator=torch.Generator().manual_seed(seed))


# Every mode for two families and for sliding windows that alternate; of the others that which their caches differ in.
@pytest.mark.parametrize(
    ("name", "schedule", "operators"),
    [
        *((name, *mode) for name in ("gpt2", "llama", "gemma3") for mode in MODES),
        ("mistral", *MODES[1]),
        ("bloom", *MODES[2]),
        ("opt", *MODES[0]),
    ],
)
def test_cache_and_no_cache_say_the_same(name, schedule, operators):
    model = converted(name, schedule, operators)
    greedy = generate(model, prompts())
    assert greedy.shape == (2, 11)
    assert torch.equal(generate(model, prompts(), use_cache=False), greedy)
    # Token by token from whole forwards, without generate.
    ids = prompts()
    for _ in range(5):
        with torch.no_grad():
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(ids, greedy)

    beams = generate(model, prompts(), num_beams=3, num_return_sequences=2)
    assert beams.shape == (4, 11)
    assert torch.equal(generate(model, prompts(), num_beams=3, num_return_sequences=2, use_cache=False), beams)
    sampled = []
    for cache in (True, False):
        torch.manual_seed(11)
        sampled.append(generate(model, prompts(), do_sample=True, use_cache=cache))
    assert torch.equal(*sampled)
    torch.manual_seed(12)
    assert not torch.equal(generate(model, prompts(), do_sample=True), sampled[0])


@pytest.mark.parametrize(
    ("name", "schedule", "operators"),
    [*((name, *mode) for name in ("t5", "bart") for mode in MODES), ("t5_gated", *MODES[1])],
)
def test_encoder_decoder_models(name, schedule, operators):
    model = converted(name, schedule, operators)
    ids = prompts()
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    for options in ({}, {"num_beams": 3}):
        answer = generate(model, ids, mask, **options)
        assert answer.shape[0] == 2 and answer.shape[1] >= 6
        assert torch.equal(generate(model, ids, mask, use_cache=False, **options), answer)
    row = generate(model, ids[:1, :4])
    greedy = generate(model, ids, mask)
    assert torch.equal(greedy[:1], row)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "do_sample": True}])
def test_graded_spikes_say_the_same_online_and_layerwise(name, options):
    model = converted(name, neuron="clipped_count")
    torch.manual_seed(0)
    layerwise = generate(model, prompts(), **options)
    model.schedule = "online"
    torch.manual_seed(0)
    assert torch.equal(generate(model, prompts(), **options), layerwise)


@pytest.mark.parametrize(("schedule", "operators"), MODES)
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_left_padding_changes_nothing(name, schedule, operators, options):
    model = converted(name, schedule, operators)
    ids = prompts()
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    batched = generate(model, ids, mask, **options)
    assert torch.equal(batched[:1, 6:], generate(model, ids[:1, 2:], **options)[:, 4:])
    assert torch.equal(batched[1:], generate(model, ids[1:], **options))


class Listener(BaseStreamer):
    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True


@pytest.mark.parametrize(("schedule", "operators"), MODES)
def test_streaming(schedule, operators):
    model, listener = converted("gpt2", schedule, operators), Listener()
    answer = generate(model, prompts(rows=1), streamer=listener)
    assert listener.tokens == answer[0].tolist() and listener.ended


class Digits:
    """As much of a tokenizer as a streamer asks for."""

    def decode(self, ids, **_):
        return "".join(f"{int(i)} " for i in ids)


def test_text_streams():
    model, streamer = converted("gpt2", "online"), TextIteratorStreamer(Digits(), skip_prompt=True, timeout=10)
    answer = generate(model, prompts(rows=1), streamer=streamer)
    assert "".join(streamer).split() == [str(i) for i in answer[0, 6:].tolist()]


def test_a_cache_is_carried_by_hand():
    model = converted("llama", "online")
    ids = prompts()
    with torch.no_grad():
        first = model(input_ids=ids[:, :4], use_cache=True)
        # Time lies in the batch of the cache as well.
        assert first.past_key_values.layers[0].keys.shape[0] == 3 * 2
        second = model(input_ids=ids[:, 4:], past_key_values=first.past_key_values).logits
        whole = model(input_ids=ids).logits
    # Float64, in another order; rotary positions and norms in float32.
    torch.testing.assert_close(second, whole[:, 4:], rtol=1e-6, atol=1e-6)


def test_scores_have_the_rows_of_the_batch():
    model = converted("gpt2", "online")
    answer = generate(model, prompts(), return_dict_in_generate=True, output_scores=True, output_logits=True)
    assert [score.shape for score in answer.scores] == [(2, 100)] * 5
    assert torch.equal(answer.logits[-1].argmax(-1), answer.sequences[:, -1])
