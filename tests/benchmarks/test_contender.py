from __future__ import annotations

import functools

import pytest
import torch
import torch._dynamo
from benchmarks.suite import subjects
from benchmarks.suite.contender import Contender
from benchmarks.suite.sizes import random_tokens
from benchmarks.suite.stock import Stock
from benchmarks.suite.subjects import SUBJECTS, chosen


def make(stock: Stock, name: str) -> Contender:
    return SUBJECTS[name].make(stock, name)


@pytest.mark.parametrize("name", ["dense", "collapsed", "stepped", "online", "online-instant"])
def test_decoding_writes_what_generate_writes(stock: Stock, name: str) -> None:
    contender = make(stock, name)
    ids = random_tokens(stock.dense, 2, 7, seed=3)
    decoding = contender.decode(ids, 5)
    contender.ready()
    with torch.inference_mode():
        written = contender.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        # The prompt gives the first token; five passes more end with the sixth. Each run begins anew.
        for _ in range(2):
            assert decoding()().equal(written[:, -1:])


def test_a_compiled_step_is_compiled_beforehand_and_writes_the_same(
    stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The graph without machine code made of it: a test is no place for a C++ compiler.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(subjects, "get_cpp_compiler", lambda: "c++")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    ids = random_tokens(stock.dense, 2, 7, seed=3)
    expected = make(stock, "collapsed").decode(ids, 5)
    compiled = make(stock, "collapsed-compiled").decode(ids, 5)
    # One for a token that comes from outside, one for those that the graph itself has made.
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 1 <= graphs <= 2
    with torch.inference_mode():
        for _ in range(2):
            assert compiled()().equal(expected()())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert not torch._dynamo.utils.counters["graph_break"]


def test_subjects_that_share_a_model_run_their_own_settings(stock: Stock) -> None:
    ids = random_tokens(stock.dense, 1, 6, seed=3)
    alone = {}
    for name in ("collapsed", "stepped", "online", "online-instant"):
        contender = make(Stock(stock.size, stock.method, tokens=64, source=stock.dense), name)
        with torch.inference_mode():
            alone[name] = contender.prefill(ids)().logits
    together = {name: make(stock, name) for name in alone}
    for name in reversed(alone):
        with torch.inference_mode():
            # Same model, same data: bit-equal.
            assert torch.equal(together[name].prefill(ids)().logits, alone[name]), name


def test_without_a_cache_a_token_costs_a_pass_over_half_of_what_is_decoded(stock: Stock) -> None:
    contender = make(stock, "reference")
    seen: list[torch.Size] = []
    contender.model.register_forward_pre_hook(lambda _, a, kw: seen.append(kw["input_ids"].shape), with_kwargs=True)
    decoding = contender.decode(random_tokens(stock.dense, 2, 7, seed=3), 6)
    with torch.inference_mode():
        decoding()()
    assert decoding.tokens == 1 and seen == [torch.Size([2, 10])]


def test_reference_and_our_online_schedule_agree(stock: Stock) -> None:
    ids = random_tokens(stock.dense, 2, 7, seed=3)
    with torch.inference_mode():
        answers = [make(stock, name).prefill(ids)().logits for name in ("reference", "online-instant")]
    # float32: both add the same numbers in another order; a spike apart would show in the second digit.
    torch.testing.assert_close(*answers, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "tolerance"), [("dense-bf16", 0.05), ("dense-int8", 0.1)])
def test_dense_in_fewer_bits(stock: Stock, name: str, tolerance: float) -> None:
    contender = make(stock, name)
    ids = random_tokens(stock.dense, 2, 7, seed=3)
    with torch.inference_mode():
        dense = make(stock, "dense").prefill(ids)().logits
        found = contender.prefill(ids)().logits.float()
    error = float((found - dense).norm() / dense.norm())
    # Not the same numbers, and near: 8 bits of mantissa, 8 bits of weights and activations.
    assert 1e-5 < error < tolerance
    assert next(stock.dense.parameters()).dtype == torch.float32


def test_int8_weights_are_a_model_of_their_own(stock: Stock) -> None:
    contender = make(stock, "collapsed-int8")
    assert contender.model.weights == "int8" and stock.converted.weights == "float"
    ids = random_tokens(stock.dense, 2, 7, seed=3)
    with torch.inference_mode():
        plain = make(stock, "collapsed").prefill(ids)().logits
        found = contender.prefill(ids)().logits
    # 8 bits of weights: near, and not the same.
    assert 0 < float((found - plain).norm() / plain.norm()) < 0.2


def test_dense_comes_first_and_names_are_checked() -> None:
    assert [s.name for s in chosen(["stepped", "dense", "stepped"])] == ["dense", "stepped"]
    with pytest.raises(ValueError, match="no subject quick; available: dense, "):
        chosen(["quick"])
