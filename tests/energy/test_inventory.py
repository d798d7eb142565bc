"""What is said of every operation: what arrives, what is left, and that nothing is hidden."""

import pytest
import tiny_cnns
import torch
import transformers
from tiny_models import FAMILIES
from torch import nn

import fas
from fas.energy.inventory import FLOATS, SUMS, alphabet, operations
from fas.errors import SiteError
from fas.layers import attention
from fas.layers.simulation import Simulation
from fas.methods.las import LAS
from fas.methods.qcfs_only import QCFSOnly
from fas.neurons.clipped_count import ClippedCount
from fas.neurons.outlier_aware import OutlierAware
from fas.neurons.phase import Phase
from fas.neurons.signed_if import SignedIF
from fas.neurons.soft_reset_if import SoftResetIF


def found(name, method):
    return operations(fas.convert(FAMILIES[name].build(), method))


def by_place(operations_found):
    return {(o.path, o.what): (o.arrives, o.left, o.floats, o.count, o.amount) for o in operations_found}


@pytest.mark.parametrize(
    ("neuron", "layerwise", "online"),
    [
        (SoftResetIF(), "binary", "binary"),
        (SignedIF(signed=True), "ternary", "ternary"),
        # It takes spikes back where its input is uneven.
        (SignedIF(signed=False), "binary", "ternary"),
        (ClippedCount(signed=False), "graded", "graded"),
        (Phase(signed=False), "binary", "binary"),
        (OutlierAware(signed=True), "ternary", "ternary"),
    ],
    ids=str,
)
def test_alphabets(neuron, layerwise, online):
    assert alphabet(neuron, Simulation()) == f"{layerwise} spikes"
    assert alphabet(neuron, Simulation(schedule="online")) == f"{online} spikes"


def test_gpt2_in_full_coverage_is_what_one_counts_by_hand():
    table = by_place(found("gpt2", fas.FAS(coverage="full", neuron="signed_if")))
    block = "transformer.h.*."
    spikes, binary = "ternary spikes", "binary spikes"
    norm = "multiplications, squares, one root and one reciprocal a row"
    assert table == {
        ("in transformer (GPT2Model)", "add"): (SUMS, "graded accumulation, additions", False, 1, 32),
        (block + "ln_1", "normalisation"): (SUMS, norm, True, 2, 2 * 64),
        (block + "attn", "query · key"): (spikes, "additions of stored key counts", False, 2, 2 * 32),
        (block + "attn", "weights · values"): (binary, "additions of stored value counts", False, 2, 2 * 32),
        (block + "attn", "softmax"): (SUMS, "an exponential a key, a reciprocal a query", True, 2, 2 * 2),
        (block + "attn", "division by the sum"): (SUMS, "multiplications", True, 2, 2 * 32),
        (block + "attn.c_attn", "linear"): (spikes, "additions", False, 2, 2 * 32 * 96),
        (block + "attn.c_proj", "linear"): (spikes, "additions", False, 2, 2 * 32 * 32),
        ("in transformer.h.* (GPT2Block)", "add"): (SUMS, "graded accumulation, additions", False, 4, 4 * 32),
        (block + "ln_2", "normalisation"): (SUMS, norm, True, 2, 2 * 64),
        (block + "mlp.c_fc", "linear"): (spikes, "additions", False, 2, 2 * 32 * 48),
        (block + "mlp.act", "activation NewGELUActivation"): (SUMS, "evaluations", True, 2, 2 * 48),
        (block + "mlp.c_proj", "linear"): (spikes, "additions", False, 2, 2 * 48 * 32),
        ("transformer.ln_f", "normalisation"): (SUMS, norm, True, 1, 64),
        ("lm_head", "linear"): (spikes, "additions", False, 1, 32 * 100),
    }


def test_an_offset_of_queries_is_a_product_of_floats():
    family = FAMILIES["gpt2"]
    model = fas.convert(family.build(), fas.FAS(timesteps=4, coverage="full", neuron="signed_if"))
    assert ("transformer.h.*.attn", "offset of query · key") not in by_place(operations(model))
    fas.calibrate(model, [family.batch()])
    left = (FLOATS, "multiply-adds with stored keys", True, 2, 2 * 32)
    assert by_place(operations(model))["transformer.h.*.attn", "offset of query · key"] == left


def test_gates_leave_no_float():
    table = by_place(found("gpt2", LAS()))
    shifted = ("gated digits", "additions of stored values, shifted", False)
    for path, what in (("ln_1", "normalisation"), ("attn", "division by the sum")):
        assert table[f"transformer.h.*.{path}", what][:3] == shifted
    # A square for every number of a row, and a root and a reciprocal.
    assert table["transformer.h.*.ln_1", "square, root, reciprocal"][3:] == (2, 2 * (32 + 2))
    assert not [o for o in found("gpt2", LAS()) if o.floats]
    # The spiking network is watched as soon as it runs: it takes a maximum that the dense one leaves to torch.
    model = fas.convert(FAMILIES["gpt2"].build(), LAS(timesteps=4), calibration=[FAMILIES["gpt2"].batch()])
    spiking = by_place(operations(model))
    maximum = spiking.pop(("transformer.h.*.attn", "maximum of a row"))
    assert spiking == table and maximum == (SUMS, "comparisons", False, 2, 2 * 2)


def test_what_only_the_spiking_network_computes_is_listed(monkeypatch):
    model = fas.convert(FAMILIES["gpt2"].build(), LAS(timesteps=4), calibration=[FAMILIES["gpt2"].batch()])
    share = attention.share_of
    monkeypatch.setattr(attention, "share_of", lambda coded, **how: share(coded, **how) * (coded.mean() * 0).cos())
    (left,) = [o for o in operations(model) if o.floats]
    assert left.what == "cos" and left.path == "in transformer.h.*.attn (GPT2Attention)"


def test_the_gated_product_is_driven_by_digits_where_the_activation_is_gated():
    place = "in model.layers.*.mlp (LlamaMLP)"
    gated = by_place(found("llama", LAS()))
    assert gated[place, "gated product"] == ("gated digits", "additions of stored values, shifted", False, 2, 2 * 48)
    exact = by_place(found("llama", LAS(gated=False)))
    assert exact[place, "mul"] == (SUMS, "multiplications", True, 2, 2 * 48)


def test_what_no_module_stands_for_is_listed_by_its_name():
    table = by_place(found("llama", LAS()))
    # The turns of rotary positions and their sines.
    assert table["in model.layers.*.self_attn (LlamaAttention)", "mul"][1:3] == ("multiplications", True)
    assert table["in model.rotary_emb (LlamaRotaryEmbedding)", "cos"][:3] == (FLOATS, "evaluations", True)


def test_partial_coverage_says_what_is_dense():
    table = by_place(found("gpt2", fas.FAS(coverage="mlp", neuron="signed_if")))
    assert table["transformer.h.*.attn.c_attn", "linear"] == (FLOATS, "multiply-adds", True, 2, 2 * 32 * 96)
    # Four tokens: 16 scores a head and 4 outputs of 16, from either product.
    assert table["in transformer.h.* (GPT2Block)", "add"][0] == FLOATS
    assert table["in transformer.h.*.attn (GPT2Attention)", "scaled_dot_product"][:3] == (FLOATS, "multiply-adds", True)
    assert table["transformer.h.*.mlp.c_proj", "linear"][:3] == ("ternary spikes", "additions", False)
    few = by_place(
        found("gpt2", fas.FAS(coverage="full", exclude=["*.operands.query", "*.operands.value"], neuron="signed_if"))
    )
    place = "transformer.h.*.attn"
    assert few[place, "query · key"][:3] == (FLOATS, "multiply-adds with stored key counts", True)
    assert few[place, "weights · values"][:3] == ("binary spikes", "additions of stored value floats", False)


def test_capped_scores_show_their_hyperbolic_tangent():
    config = transformers.Gemma2Config(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, attn_implementation="eager",
    )  # fmt: skip
    model = fas.convert(transformers.Gemma2ForCausalLM(config).eval(), fas.FAS(coverage="full"))
    assert any(o.what == "tanh" and o.floats for o in operations(model))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_architecture(name):
    model = fas.convert(FAMILIES[name].build(), fas.FAS(coverage="linear"))
    settings = model.network, model.schedule
    table = operations(model)
    # A note for every linear layer that runs; ALBERT's run twice.
    expected = {path for site in model.sites for path in site.layers}
    times = 2 if name == "albert" else 1
    assert len(expected) <= sum(o.count for o in table if o.what == "linear") <= times * len(expected)
    assert any(o.floats for o in table) and all(o.amount >= 0 for o in table)
    assert settings == (model.network, model.schedule)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_function_that_hides_in_a_block_is_found():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(32, 32)

        def forward(self, x):
            return torch.erfinv(self.inner(x).clamp(-0.9, 0.9))

    model = FAMILIES["gpt2"].build()
    model.transformer.h[0].mlp.dropout = Hidden()
    table = by_place(operations(fas.convert(model, fas.FAS(coverage="full"))))
    assert table["in transformer.h.*.mlp.dropout (Hidden)", "erfinv"] == (FLOATS, "evaluations", True, 1, 32)


@pytest.mark.parametrize(
    ("size", "what", "floats"), [((), "scaling by one number", False), (32, "multiplications", True)]
)
def test_a_number_for_every_channel_is_no_scaling_by_one(size, what, floats):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = nn.Linear(32, 32), nn.Parameter(torch.full((size,) if size else (), 2.0))

        def forward(self, x):
            return self.inner(x) * self.scale

    model = FAMILIES["gpt2"].build()
    model.transformer.h[0].mlp.dropout = Scaled()
    table = by_place(operations(fas.convert(model, fas.FAS(coverage="full"))))
    _, left, *rest = table["in transformer.h.*.mlp.dropout (Scaled)", "mul"]
    assert left.startswith(what) and rest == [floats, 1, 32]


def plain(name, method):
    x = tiny_cnns.images(2)
    return operations(fas.convert(tiny_cnns.build(name), method, probe={"x": x[:1]}), {"x": x[:1]})


def test_a_convolutional_network_is_what_one_counts_by_hand():
    table = {(o.path, o.what, o.arrives): (o.left, o.floats, o.count, o.amount) for o in plain("vgg", QCFSOnly())}
    # Images of 12 by 12, halved twice by maxima; the image is a constant current, which the table does not hide.
    kernels = (6 * 7 + 7 * 8) * 36 + 8 * 9 * 9
    assert table == {
        ("features.*", "convolution", FLOATS): ("multiply-adds", True, 1, 3 * 6 * 9 * 144),
        ("features.*", "convolution", "binary spikes"): ("additions", False, 3, kernels * 9),
        ("in features.* (MaxPool2d)", "max_pool2d_with_indices", SUMS): ("comparisons", False, 2, 6 * 36 + 8 * 9),
        ("in avgpool (AdaptiveAvgPool2d)", "adaptive_avg_pool2d", SUMS): ("additions", False, 1, 9 * 4),
        ("classifier.*", "linear", "binary spikes"): ("additions", False, 2, 360 + 50),
    }


def test_functions_and_normalisations_of_a_plain_module_are_listed():
    found = {(o.path, o.what): (o.arrives, o.left, o.floats) for o in plain("functional", fas.FAS())}
    assert found["stem", "convolution"] == ("ternary spikes", "additions", False)
    assert found["in bn1 (BatchNorm2d)", "native_batch_norm"] == (SUMS, "multiplications and additions", True)
    assert found["in Functional", "relu"] == (SUMS, "comparisons", False)
    assert found["in Functional", "add"] == (SUMS, "graded accumulation, additions", False)


def test_rows_of_a_plain_module_are_its_tokens():
    torch.manual_seed(0)
    x = {"input": torch.randn(3, 8)}
    model = fas.convert(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)), fas.FAS(), probe=x)
    assert by_place(operations(model, x))["*", "activation GELU"] == (SUMS, "evaluations", True, 1, 16)


def test_amounts_that_tokens_share_are_rounded_to_the_nearest():
    ids = {"input_ids": FAMILIES["bert_classifier"].batch(rows=2, length=3)["input_ids"]}
    pooled = ("bert.pooler.activation", "activation tanh")
    gated, exact = (
        by_place(operations(fas.convert(FAMILIES["bert_classifier"].build(), method), ids))
        for method in (LAS(), fas.FAS())
    )
    # Two rows of 32 for six tokens: 10 and two thirds.
    assert gated[pooled][-1] == exact["bert.pooler.activation", "activation Tanh"][-1] == 11
    ids = {"input_ids": FAMILIES["llama"].batch(rows=3, length=4)["input_ids"]}
    turns = by_place(operations(fas.convert(FAMILIES["llama"].build(), fas.FAS()), ids))
    # The rows share their 4 positions of 8 angles.
    assert turns["in model.rotary_emb (LlamaRotaryEmbedding)", "cos"][-1] == 3


def test_a_plain_module_needs_a_probe():
    x = tiny_cnns.images(2)
    model = fas.convert(tiny_cnns.build("vgg"), fas.FAS(), probe={"x": x[:1]})
    with pytest.raises(SiteError, match="is not a transformers model and does not say what it reads"):
        operations(model)
