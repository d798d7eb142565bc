"""A tiny model, on disk and as a stock of what is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.suite.stock import Stock
from tiny_models import FAMILIES

from fas.methods.fas import FAS


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 without tokenizer; its context holds 64 tokens."""
    place = tmp_path_factory.mktemp("bench") / "tiny"
    FAMILIES["gpt2"].build().save_pretrained(place)
    return place


@pytest.fixture
def stock() -> Stock:
    return Stock("tiny", FAS(timesteps=4, neuron="signed_if"), tokens=64, source=FAMILIES["gpt2"].build())
