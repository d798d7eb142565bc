"""A cache of fixed size: the same tokens, and one graph for all positions."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
from tiny_models import FAMILIES
from transformers import StaticCache

import fas

NEW = 5


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gpt2", {}),
        pytest.param("llama", {"execution": "stepped"}, marks=pytest.mark.slow),
        pytest.param("gpt2", {"schedule": "online"}, marks=pytest.mark.slow),
        ("llama", {"schedule": "online", "operators": "instant"}),
    ],
    ids=["gpt2-collapsed", "llama-stepped", "gpt2-online", "llama-instant"],
)
def test_decoding_with_a_static_cache_is_one_graph(name, settings):
    family = FAMILIES[name]
    model = fas.convert(family.build(), fas.FAS(timesteps=4, neuron="signed_if"), calibration=[family.batch(seed=3)])
    for setting, value in settings.items():
        setattr(model, setting, value)
    ids = family.batch()["input_ids"]
    limits = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    limits["attention_mask"] = torch.ones_like(ids)
    expected = model.generate(ids, **limits)
    assert torch.equal(model.generate(ids, cache_implementation="static", disable_compile=True, **limits), expected)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    cache = StaticCache(config=model.config, max_cache_len=ids.shape[1] + NEW)
    step = torch.compile(model.forward, fullgraph=True, backend="eager")
    with torch.no_grad():
        logits = model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits
        for position in range(NEW):
            token = logits[:, -1].argmax(-1, keepdim=True)
            assert torch.equal(token, expected[:, ids.shape[1] + position, None])
            logits = step(input_ids=token, past_key_values=cache, logits_to_keep=1).logits
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
