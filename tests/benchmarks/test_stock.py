from __future__ import annotations

from pathlib import Path

import torch
from benchmarks.suite.stock import Stock
from tiny_models import FAMILIES

from fas.methods.fas import FAS


def test_conversion_leaves_the_dense_model_alone(stock: Stock) -> None:
    before = type(stock.dense), [name for name, _ in stock.dense.named_modules()]
    assert stock.converted is stock.converted and stock.converted.timesteps == 4
    assert (type(stock.dense), [name for name, _ in stock.dense.named_modules()]) == before
    assert stock.converted.lm_head.weight is stock.dense.lm_head.weight
    assert stock.seconds.keys() == {"conversion", "calibration"} and min(stock.seconds.values()) > 0


def test_saved_parameters_give_the_same_network(stock: Stock, tmp_path: Path) -> None:
    stock.save(tmp_path / "parameters.safetensors")
    again = Stock(
        "tiny",
        FAS(timesteps=4, neuron="signed_if"),
        source=FAMILIES["gpt2"].build(),
        parameters=tmp_path / "parameters.safetensors",
    )
    ids = FAMILIES["gpt2"].batch()["input_ids"]
    with torch.no_grad():
        # The very same arithmetic on the very same numbers.
        assert torch.equal(stock.converted(input_ids=ids).logits, again.converted(input_ids=ids).logits)
    assert "calibration" not in again.seconds


def test_bytes_of_linear_weights_are_those_of_the_shape(stock: Stock) -> None:
    # d = 32, MLP 48, two blocks, vocabulary 100: attention 3d·d + d·d, MLP 2·48·d, and the head.
    linear = 2 * (4 * 32 * 32 + 2 * 48 * 32) + 100 * 32
    found, everything = stock.weight_bytes()
    assert found == 4 * linear
    # The head's weight is the embedding; positions, biases and norms come on top.
    assert everything == 4 * (linear + 64 * 32 + 2 * (3 * 32 + 32 + 48 + 32 + 4 * 32) + 2 * 32)
