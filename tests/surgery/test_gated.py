"""Which modules gated populations take the place of, in every architecture."""

import pytest
import torch
import transformers
from tiny_models import FAMILIES
from torch import nn

from fas.layers.gated_operators import GatedActivation, GatedNorm
from fas.layers.simulation import Simulation
from fas.surgery.gated import attach_operators, detach_operators

# Norms: (how many, mean subtracted, gain 1 + weight); activations: their function.
EXPECTED = {
    "gpt2": (5, True, False, {"gelu_tanh"}),
    "opt": (5, True, False, set()),
    "gpt_neox": (5, True, False, {"gelu"}),
    "llama": (5, False, False, {"silu"}),
    "mistral": (5, False, False, {"silu"}),
    "qwen2": (5, False, False, {"silu"}),
    "qwen3": (9, False, False, {"silu"}),
    "gemma": (5, False, True, {"gelu_tanh"}),
    "gemma3": (13, False, True, {"gelu_tanh"}),
    "bloom": (6, True, False, {"gelu_tanh"}),
    "bert_mlm": (6, True, False, {"gelu"}),
    "bert_classifier": (5, True, False, {"gelu", "tanh"}),
    "roberta": (5, True, False, {"gelu"}),
    "distilbert": (5, True, False, {"gelu"}),
    "albert": (4, True, False, {"gelu_tanh"}),
    "t5": (12, False, False, set()),
    "t5_gated": (12, False, False, {"gelu_tanh"}),
    "bart": (12, True, False, {"gelu"}),
    "vit": (5, True, False, {"gelu"}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_norm_and_activation(name):
    model, inputs = FAMILIES[name].build(), FAMILIES[name].batch()
    types, keys = [type(module) for module in model.modules()], list(model.state_dict())
    simulation = Simulation()
    with torch.no_grad():
        before = model(**inputs).logits
        attach_operators(model, simulation)
        norms = [module for module in model.modules() if isinstance(module, GatedNorm)]
        kinds = {(module.centred, module.plus_one) for module in norms}
        functions = {module.function.name for module in model.modules() if isinstance(module, GatedActivation)}
        count, centred, plus_one, expected = EXPECTED[name]
        assert (len(norms), kinds, functions) == (count, {(centred, plus_one)}, expected)
        assert list(model.state_dict()) == keys
        after = model(**inputs).logits
        # Errors of some 1e-5 an operator, through two blocks of large random weights.
        assert 0 < float((after - before).norm() / before.norm()) < 0.01
        simulation.network = "ann"
        assert torch.equal(model(**inputs).logits, before)
        detach_operators(model)
        assert [type(module) for module in model.modules()] == types
        assert torch.equal(model(**inputs).logits, before)


def test_forms_are_found_without_weights():
    config = transformers.LlamaConfig(**FAMILIES["llama"].options, vocab_size=10)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    attach_operators(model, Simulation())
    assert sum(isinstance(module, GatedNorm) for module in model.modules()) == 5
    assert sum(isinstance(module, GatedActivation) for module in model.modules()) == 2


def test_what_no_gated_function_computes_stays():
    class OddNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(4)), 1e-5

        def forward(self, x):
            return x / x.abs().sum(-1, keepdim=True) * self.weight

    model = nn.Sequential(OddNorm(), nn.Softplus(), nn.PReLU(), nn.ReLU(), nn.BatchNorm1d(4), nn.LayerNorm(4))
    types = [type(module) for module in model[:-1]]
    attach_operators(model, Simulation())
    assert [type(module) for module in model[:-1]] == types and isinstance(model[-1], GatedNorm)
    assert model[-1].training


def test_norms_without_a_gain_stay():
    model = nn.Sequential(nn.LayerNorm(4, elementwise_affine=False))
    attach_operators(model, Simulation())
    assert type(model[0]) is nn.LayerNorm
