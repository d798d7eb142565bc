"""Adapters are merged before conversion, or named."""

import pytest
import torch
from tiny_models import FAMILIES, logits
from torch import nn

import fas
from fas.errors import CheckpointError, SiteError


class Adapted(nn.Module):
    """What peft makes of a layer."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.merged_adapters = base_layer, []
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base_layer.out_features, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def refuse(model: nn.Module) -> None:
    with pytest.raises(SiteError, match=r"self_attn\.q_proj \(\w+\) carries an adapter .*merge_and_unload\(\)"):
        fas.convert(model, calibration=[FAMILIES["llama"].batch()])


def test_an_adapter_is_refused_with_advice():
    model = FAMILIES["llama"].build()
    attention = model.model.layers[1].self_attn
    attention.q_proj = Adapted(attention.q_proj)
    refuse(model)


# peft asks for what transformers will remove.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_of_peft_are_refused_until_they_are_merged():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    family = FAMILIES["llama"]
    adapted = peft.get_peft_model(family.build(), peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    refuse(adapted)
    merged = adapted.merge_and_unload()
    with torch.no_grad():
        before = merged(**family.batch()).logits
    fas.convert(merged, calibration=[family.batch()])
    assert torch.equal(logits(merged, family.batch(), network="ann"), before)
    model = family.build()
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"]))
    refuse(model)


def test_a_directory_of_an_adapter_says_so(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="it is an adapter: merge it into its model"):
        fas.load(str(tmp_path))
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match="it is not a model directory"):
        fas.load(str(tmp_path))
