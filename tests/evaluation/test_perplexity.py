"""Perplexity against a token by token loop, its windows, and the models and texts it refuses."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from fas.errors import DataError
from fas.evaluation.perplexity import perplexity

VOCABULARY = 11
CONTEXT = 8


@pytest.fixture
def config():
    return GPT2Config(vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=16, n_layer=1, n_head=2)


@pytest.fixture
def model(config):
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():
        # Far from uniform, so that a token scored under the wrong context shows.
        parameter.data.normal_(std=0.5)
    return model.eval()


def slow_reference(model, tokens, window, stride):
    """Each token by its own call of the model, under the window that scores it."""
    losses = []
    for position in range(1, len(tokens)):
        begin = 0
        while position >= begin + window:
            begin += stride
        if position > begin:
            with torch.no_grad():
                logits = model(input_ids=tokens[None, begin:position]).logits[0, -1]
            losses.append(-logits.double().log_softmax(-1)[tokens[position]].item())
    return sum(losses) / len(losses), len(losses)


class Recurrent(torch.nn.Module):
    """A causal model that depends on its whole window and is quick to call once for each token."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(VOCABULARY, 16)
        self.mix = torch.nn.GRU(16, 16, batch_first=True)
        self.head = torch.nn.Linear(16, VOCABULARY)

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.head(self.mix(self.embed(input_ids))[0]))


@pytest.mark.parametrize("length", [2, 7, 8, 9, 13, 17])
@pytest.mark.parametrize(("window", "stride"), [(8, 4), (8, 8), (8, 1), (5, 3), (2, 1), (2, 2)])
def test_equals_the_token_by_token_loop(length, window, stride):
    model, tokens = Recurrent(), torch.randint(VOCABULARY, (length,))
    result = perplexity(model, tokens, window=window, stride=stride, batch_size=3)
    nll, scored = slow_reference(model, tokens, window, stride)
    # float32 logits: one call sums in another order than the loop's many.
    assert result.nll_per_token == pytest.approx(nll, rel=1e-5)
    assert result.value == pytest.approx(math.exp(nll), rel=1e-4)
    assert (result.tokens, result.window, result.stride) == (scored, window, stride)


def slow_reference_led(model, tokens, window, stride, bos):
    """As ``slow_reference``, with a leading token before every window that does not begin with it."""
    losses, begin, seen = [], 0, 0
    while seen < len(tokens):
        led = int(tokens[begin] != bos)
        end = min(begin + window - led, len(tokens))
        context = torch.cat([torch.tensor([bos] * led, dtype=torch.int64), tokens[begin:end]])
        for place in range(max(seen - begin + led, 1), len(context)):
            if context[place] != bos:
                with torch.no_grad():
                    logits = model(input_ids=context[None, :place]).logits[0, -1]
                losses.append(-logits.double().log_softmax(-1)[context[place]].item())
        begin, seen = begin + stride, end
    return sum(losses) / len(losses), len(losses)


@pytest.mark.parametrize("length", [2, 7, 8, 9, 17])
@pytest.mark.parametrize(("window", "stride"), [(8, 4), (8, 7), (8, 1), (2, 1)])
@pytest.mark.parametrize("own", [(), (0,), (0, 5)])
def test_every_window_begins_with_the_leading_token(length, window, stride, own):
    model, tokens = Recurrent(), torch.randint(1, VOCABULARY, (length,))
    for place in own:
        if place < length:
            tokens[place] = 0
    result = perplexity(model, tokens, window=window, stride=stride, batch_size=3, bos=0)
    nll, scored = slow_reference_led(model, tokens, window, stride, 0)
    assert result.nll_per_token == pytest.approx(nll, rel=1e-5)  # as above
    assert (result.tokens, result.bos) == (scored, True)
    # All of the text has a context now, but for its own leading tokens, which no model writes.
    assert scored == int((tokens != 0).sum())


def test_a_perplexity_can_be_measured_again_from_its_conditions(model):
    tokens = torch.randint(1, VOCABULARY, (29,))
    found = perplexity(model, tokens, bos=0)
    assert found.conditions == {
        "window": CONTEXT, "stride": CONTEXT // 2, "bos": True, "scored_tokens": 29,
        "nll_per_token": found.nll_per_token,
    }  # fmt: skip
    again = perplexity(model, tokens, window=found.conditions["window"], stride=found.conditions["stride"], bos=0)
    assert again == found
    assert perplexity(model, tokens).conditions["bos"] is False
    # A window that takes a leading token advances by one less than its length.
    assert perplexity(model, tokens, stride=CONTEXT, bos=0).stride == CONTEXT - 1


def test_batching_does_not_matter(model):
    tokens = torch.randint(VOCABULARY, (29,))
    first, *others = (perplexity(model, tokens, batch_size=size) for size in (1, 2, 100))
    for other in others:
        # float32 products of other shapes sum in another order.
        assert other.nll_per_token == pytest.approx(first.nll_per_token, rel=1e-5)
        assert other.tokens == first.tokens == 28


def test_equals_the_token_by_token_loop_of_a_transformer(model):
    tokens = torch.randint(VOCABULARY, (13,))
    nll, scored = slow_reference(model, tokens, CONTEXT, CONTEXT // 2)
    result = perplexity(model, tokens)
    assert result.nll_per_token == pytest.approx(nll, rel=1e-5)  # as above
    assert result.tokens == scored == 12


def test_one_window_equals_the_loss_of_transformers(model):
    tokens = torch.randint(VOCABULARY, (CONTEXT,))
    expected = model(input_ids=tokens[None], labels=tokens[None]).loss.item()
    # The same float32 sum.
    assert perplexity(model, tokens).nll_per_token == pytest.approx(expected, rel=1e-6)


def test_uniform_model_has_the_perplexity_of_its_vocabulary(model):
    torch.nn.init.zeros_(model.lm_head.weight)
    result = perplexity(model, torch.randint(VOCABULARY, (30,)))
    assert result.value == pytest.approx(VOCABULARY, rel=1e-6)  # log and exp in float32


def test_defaults_come_from_the_model(model):
    result = perplexity(model, torch.randint(VOCABULARY, (30,)))
    assert (result.window, result.stride, result.tokens) == (CONTEXT, CONTEXT // 2, 29)


class Silent(torch.nn.Module):
    """A model without configuration or parameters that finds every token equally likely."""

    def __init__(self, fill=0.0):
        super().__init__()
        self.fill = fill
        self.rows = []

    def forward(self, input_ids):
        self.rows.append(tuple(input_ids.shape))
        return SimpleNamespace(logits=torch.full((*input_ids.shape, VOCABULARY), self.fill).half())


def test_any_module_with_logits_will_do_and_1024_is_the_window_without_a_context_length():
    result = perplexity(Silent(), torch.zeros(3000, dtype=torch.int64))
    assert (result.window, result.stride, result.tokens) == (1024, 512, 2999)
    assert result.value == pytest.approx(VOCABULARY, rel=1e-6)  # log and exp in float32


def test_windows_of_equal_length_share_a_call_and_the_shorter_last_one_is_alone():
    model = Silent()
    perplexity(model, torch.zeros(21, dtype=torch.int64), window=8, stride=4, batch_size=3)
    assert model.rows == [(3, 8), (1, 8), (1, 5)]


def test_progress_counts_windows(model):
    seen = []
    tokens = torch.randint(VOCABULARY, (21,))
    perplexity(model, tokens, batch_size=3, progress=lambda _, done, total: seen.append((done, total)))
    assert seen == [(3, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored_and_dropout_is_off(model, training):
    tokens = torch.randint(VOCABULARY, (20,))
    model.train(training)
    first, second = perplexity(model, tokens), perplexity(model, tokens)
    assert model.training is training
    assert first == second
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nan_logits_give_nan():
    assert math.isnan(perplexity(Silent(math.nan), torch.zeros(5, dtype=torch.int64)).value)


def test_overflow_gives_infinity():
    class Sure(Silent):
        def forward(self, input_ids):
            logits = torch.zeros(*input_ids.shape, VOCABULARY)
            logits[..., 1] = 1e4
            return SimpleNamespace(logits=logits)

    result = perplexity(Sure(), torch.zeros(5, dtype=torch.int64))
    assert result.value == math.inf
    assert result.nll_per_token == pytest.approx(1e4)


@pytest.mark.parametrize("length", [0, 1])
def test_too_short_text(model, length):
    with pytest.raises(DataError, match=rf"has {length} tokens, perplexity needs at least 2"):
        perplexity(model, torch.zeros(length, dtype=torch.int64))


@pytest.mark.parametrize("wrong", [VOCABULARY, -1])
def test_ids_outside_the_vocabulary(model, wrong):
    with pytest.raises(DataError, match=rf"token id {wrong} is outside the model's vocabulary of {VOCABULARY}"):
        perplexity(model, torch.tensor([1, wrong, 2]))


@pytest.mark.parametrize("tokens", [torch.zeros(1, 5, dtype=torch.int64), torch.zeros(5)])
def test_tokens_are_one_stream_of_integers(model, tokens):
    with pytest.raises(ValueError, match=r"expected one stream, int64 \[N\]"):
        perplexity(model, tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "window is 1: expected at least 2"),
        ({"window": CONTEXT + 1}, f"context holds {CONTEXT} tokens"),
        ({"stride": 0}, f"stride is 0: expected 1 to the window of {CONTEXT}"),
        ({"window": 4, "stride": 5}, "stride is 5: expected 1 to the window of 4"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_options_out_of_range(model, options, message):
    with pytest.raises(ValueError, match=message):
        perplexity(model, torch.zeros(20, dtype=torch.int64), **options)


@pytest.mark.parametrize("head", [BertForMaskedLM, BertLMHeadModel])
def test_masked_models_are_refused(head):
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    with pytest.raises(ValueError, match=r"not a causal language model.*take a causal language model"):
        perplexity(head(config), torch.zeros(5, dtype=torch.int64))


def test_bert_that_decodes_is_causal():
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        is_decoder=True,
    )
    assert perplexity(BertLMHeadModel(config), torch.zeros(5, dtype=torch.int64)).tokens == 4


def test_encoder_decoders_are_refused():
    config = T5Config(vocab_size=VOCABULARY, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="not a causal language model: an encoder-decoder"):
        perplexity(T5ForConditionalGeneration(config), torch.zeros(5, dtype=torch.int64))


def test_classifiers_are_refused(config):
    config.pad_token_id = 0
    model = GPT2ForSequenceClassification(config)
    with pytest.raises(ValueError, match=r"GPT2ForSequenceClassification gives logits .* causal language model"):
        perplexity(model, torch.ones(5, dtype=torch.int64))
