from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES

import fas
from fas.calibration import needs
from fas.types import Site


def test_shape_and_disk_are_those_of_the_model(tmp_path, monkeypatch) -> None:
    model = FAMILIES["llama"].build()
    found = fas.estimate_conversion(model, 4096, fas.FAS())
    converted = fas.convert(model, fas.FAS(), calibration=[FAMILIES["llama"].batch()])
    assert fas.estimate_conversion(converted, 4096).disk == found.disk
    assert found.sites == len(converted.sites)
    assert found.channels == sum(site.channels for site in converted.sites)
    converted.save_pretrained(tmp_path)
    written = (tmp_path / "model.safetensors").stat().st_size
    # Thresholds, offsets and initial potentials are in it; corrections of biases and the header are not.
    assert 0.5 < found.disk / written < 1


def test_time_follows_tokens_and_weights(monkeypatch) -> None:
    monkeypatch.setattr(needs, "_seconds_per_product", lambda: 1e-9)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    model = FAMILIES["gpt2"].build()
    parameters = dict(model.named_parameters())
    every = sum(x.numel() for x in parameters.values())
    inside = sum(x.numel() for name, x in parameters.items() if x.ndim > 1 and name.startswith("transformer.h."))
    channels = sum(site.channels for site in fas.FAS().select(model))
    for tokens, rows in ((512, 512), (65536, 16384)):
        passes = (inside * 5 * tokens + every * 3 * min(tokens, 1024)) * 2e-9
        found = fas.estimate_conversion(model, tokens, fas.FAS()).seconds
        assert found == pytest.approx(passes + needs._FIT * channels * rows / 2)


def test_streaming_needs_one_block_and_no_depth() -> None:
    def memory(layers: int, *, streamed: bool) -> int:
        with torch.device("meta"):
            model = FAMILIES["llama"].build(num_hidden_layers=layers, hidden_size=512, intermediate_size=1024)
        model.sites = [Site("model.layers.0.mlp.down_proj", "mlp", 1024)]
        return fas.estimate_conversion(model, 1024, streamed=streamed).memory

    assert memory(2, streamed=True) == memory(8, streamed=True) < memory(8, streamed=False)
    assert memory(2, streamed=False) < memory(8, streamed=False)


def test_it_is_said_in_words() -> None:
    found = needs.Needs(150, 2 << 30, 300 << 20, 134_500_000, 121, 98_000, 4096)
    assert str(found) == (
        "about 2 min on an idle machine, 2.0 GiB of memory, 300.0 MiB on the disk (134.5 million parameters, 121 sites "
        "of 98,000 channels, 4,096 tokens)"
    )
