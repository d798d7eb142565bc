"""Attention that modules write out themselves: found, exchanged, put back, refused."""

import copy
import functools

import made
import pytest
import torch
from tiny_models import FAMILIES, logits
from tiny_vision_language import VISION_LANGUAGE
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

import fas
from fas.errors import SiteError
from fas.layers.attention import AttentionOperands
from fas.surgery.attention import recording_attention, register_attention
from fas.surgery.sites import find_sites
from fas.surgery.written_attention import use_dense_products, use_spiking_products, writes_attention

converted = functools.partial(made.converted, "bloom", timesteps=5, coverage="full", seeds=(1, 2))


def test_factors_are_sites_in_the_order_of_execution():
    sites = find_sites(FAMILIES["bloom"].build(), "full")
    first = [
        (site.path.removeprefix("transformer.h.0.self_attention."), site.role, site.channels, site.signed)
        for site in sites[:6]
    ]
    assert first == [
        ("query_key_value", "linear_input", 32, True),
        ("operands.query", "query", 32, True),
        ("operands.key", "key", 32, True),
        ("operands.attention_weight", "attention_weight", 2, False),
        ("operands.value", "value", 32, True),
        ("dense", "linear_input", 32, True),
    ]


def test_calls_are_recorded_by_head():
    model, calls = FAMILIES["bloom"].build(), []
    with recording_attention(model, calls.append), torch.no_grad():
        model(**FAMILIES["bloom"].batch())
    # 3 rows of 9 tokens, 2 heads of 16, which BLOOM holds as 6 matrices.
    assert [(call.query, call.key, call.value, call.written) for call in calls] == [
        ((3, 2, 9, 16), (3, 2, 9, 16), (3, 2, 9, 16), True)
    ] * 2


@pytest.mark.parametrize("name", [*FAMILIES, *VISION_LANGUAGE])
def test_only_what_asks_for_no_function_writes_attention(name):
    model = (FAMILIES.get(name) or VISION_LANGUAGE[name]).build()
    paths = {module: path for path, module in model.named_modules()}
    written = {site.path.split(".operands")[0] for site in find_sites(model, "full") if ".operands." in site.path}
    own = {path for path in written if writes_attention(model.get_submodule(path))}
    assert len(paths) > len(written) > 0
    expected = {
        "bloom": written, "blip": written, "blip_vqa": written,
        "git": {path for path in written if not path.startswith("git.image_encoder")},
    }  # fmt: skip
    assert own == expected.get(name, set())


def test_a_trace_leaves_nothing_behind():
    model = FAMILIES["bloom"].build()
    names = [(type(module), set(vars(module))) for module in model.modules()]
    find_sites(model, "full")
    assert [(type(module), set(vars(module))) for module in model.modules()] == names
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_the_class_of_a_module_changes_behind_its_name_and_back():
    model = FAMILIES["bloom"].build()
    module = model.transformer.h[0].self_attention
    cls = type(module)
    use_spiking_products(module)
    use_spiking_products(module)
    assert isinstance(module, cls) and type(module) is not cls and type(module).__name__ == cls.__name__
    assert writes_attention(module)
    use_dense_products(module)
    use_dense_products(module)
    assert type(module) is cls


def test_a_copy_has_its_own_populations():
    model, inputs = converted(), FAMILIES["bloom"].batch()
    twin = copy.deepcopy(model)
    answer = logits(model, inputs)
    with torch.no_grad():
        model.transformer.h[0].self_attention.operands.query.neuron.log_threshold.add_(1)
    assert torch.equal(logits(twin, inputs), answer) and not torch.equal(logits(model, inputs), answer)


def test_weights_can_be_seen():
    model = converted()
    with torch.no_grad():
        seen = model(**FAMILIES["bloom"].batch(), output_attentions=True).attentions
    # Coded weights of a query sum to one: float32 rounding of nine summands.
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(3, 2, 9))


def test_twelve_bits_lose_nothing():
    model, inputs = converted(neuron="phase", timesteps=12), FAMILIES["bloom"].batch(padded=True)
    dense = logits(model, inputs, network="ann")
    # Twelve bits a factor through two blocks; a position bias or mask that is forgotten shows at tens of percent.
    assert 0 < float((logits(model, inputs) - dense).norm() / dense.norm()) < 0.02


class Attention(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.project, self.way = nn.Linear(8, 8), way

    def forward(self, x):
        x = self.project(x)
        heads = x.unflatten(-1, (2, 4)).transpose(1, 2)
        return self.way(heads).transpose(1, 2).flatten(2)


class Small(PreTrainedModel):
    config_class = PretrainedConfig
    main_input_name = "pixel_values"

    def __init__(self, way):
        super().__init__(PretrainedConfig())
        self.block = Attention(way)

    def forward(self, pixel_values):
        return self.block(pixel_values)


def plain(x):
    return (x @ x.mT).softmax(-1) @ x


def twice(x):
    return plain(plain(x))


def with_positions(x):
    positions = torch.ones(1, 1, x.shape[-2], x.shape[-2])
    return ((x @ x.mT) + positions @ positions).softmax(-1) @ x


def summed(x):
    return torch.einsum("bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", x, x).softmax(-1), x)


def without_heads(x):
    x = x.flatten(0, 1)
    return plain(x).unflatten(0, (-1, 2))


PROBE = {"pixel_values": torch.ones(1, 5, 8)}


@pytest.mark.parametrize("way", [plain, twice])
def test_any_module_of_transformers_may_write_it(way):
    sites = find_sites(Small(way), "full", probe=PROBE)
    assert [site.path for site in sites if site.role == "key"] == ["block.operands.key"]
    model = fas.convert(
        Small(way), fas.FAS(coverage="full"), calibration=[{"pixel_values": torch.randn(2, 5, 8)}], probe=PROBE
    )
    assert isinstance(model.block.operands, AttentionOperands)
    assert len(model(torch.randn(3, 5, 8))) == 3


@pytest.mark.parametrize("way", [with_positions, summed, without_heads])
def test_what_is_not_two_products_around_a_softmax_by_head_is_refused(way):
    model = Small(way)
    with pytest.raises(SiteError, match=r"Attention\)? computes attention by itself.*use coverage 'linear'"):
        find_sites(model, "full", probe=PROBE)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_an_attention_function_from_elsewhere_is_refused():
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    register_attention()
    model = Small(plain)
    function = ALL_ATTENTION_FUNCTIONS["fas_sdpa"]
    model.block.way = lambda x: function(model.block, x, x, x, None, scaling=1.0)[0].transpose(1, 2)
    with pytest.raises(SiteError, match="Attention gets its attention function from elsewhere"):
        find_sites(model, "full", probe=PROBE)
