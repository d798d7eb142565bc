from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.suite.sizes import build, context, from_config
from tiny_models import FAMILIES
from transformers import GPT2Config

import fas
from fas.errors import CheckpointError, FASError


def test_a_directory_is_loaded_in_single_precision(directory: Path) -> None:
    model = build(str(directory))
    assert not model.training and context(model) == 64
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    expected = FAMILIES["gpt2"].build().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_random_weights_depend_on_the_seed_alone() -> None:
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20)
    torch.manual_seed(7)
    first = from_config(config).lm_head.weight
    state = torch.get_rng_state()
    again, other = from_config(config).lm_head.weight, from_config(config, seed=1).lm_head.weight
    assert torch.equal(first, again) and not torch.equal(first, other)
    # Random numbers of the program itself go on as if nothing had been built.
    assert torch.equal(torch.get_rng_state(), state)


def test_other_names_and_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no size 'huge': choose one of embedded, gpt2-small, opt-1.3b"):
        build("huge")
    FAMILIES["vit"].build().save_pretrained(tmp_path / "vit")
    with pytest.raises(FASError, match="is a vit, which does not generate"):
        build(str(tmp_path / "vit"))
    model = fas.convert(FAMILIES["gpt2"].build(), calibration=[FAMILIES["gpt2"].batch()])
    model.save_pretrained(tmp_path / "snn")
    with pytest.raises(FASError, match="converted already"):
        build(str(tmp_path / "snn"))
