"""A converted directory spread over memory and disk by accelerate answers to the last bit as a whole one does."""

import pytest
import torch
from tiny_models import FAMILIES
from transformers import AutoModelForCausalLM

import fas
from fas.errors import FASError


@pytest.mark.parametrize(
    ("family", "coverage"), [("gpt2", "linear"), ("llama", "full"), pytest.param("opt", "mlp", marks=pytest.mark.slow)]
)
def test_what_does_not_fit_is_read_from_the_disk(family, coverage, tmp_path):
    source = FAMILIES[family]
    model = fas.convert(source.build(), fas.FAS(timesteps=4, coverage=coverage), calibration=[source.batch()])
    model.save_pretrained(tmp_path / "snn")
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    spread = AutoModelForCausalLM.from_pretrained(
        tmp_path / "snn", device_map="auto", max_memory={"cpu": weights * 2 // 3}, offload_folder=tmp_path / "offload"
    )
    assert "disk" in spread.hf_device_map.values() and spread.network == "snn"
    inputs = source.batch(padded=True, seed=9)
    with torch.no_grad():
        assert torch.equal(spread(**inputs).logits, model(**inputs).logits)


def test_offloaded_neurons_online_and_with_integers(tmp_path):
    source = FAMILIES["gpt2"]
    model = fas.convert(source.build(), fas.FAS(timesteps=4, neuron="signed_if"), calibration=[source.batch()])
    model.save_pretrained(tmp_path / "snn")
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    spread = AutoModelForCausalLM.from_pretrained(
        tmp_path / "snn", device_map="auto", max_memory={"cpu": weights * 2 // 3}, offload_folder=tmp_path / "offload"
    )
    inputs = source.batch(rows=16, length=12, seed=9)
    model.schedule = spread.schedule = "online"
    with torch.no_grad():
        # The products of those in memory add in another order (by tables).
        assert torch.allclose(spread(**inputs).logits, model(**inputs).logits, atol=1e-4)
    spread.schedule, spread.weights = "layerwise", "int8"
    with (
        torch.no_grad(),
        pytest.raises(FASError, match=r"weights='int8' needs the neurons of .* in memory, and accelerate"),
    ):
        spread(**inputs)
