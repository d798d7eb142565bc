"""Attention functions in transformers' registry: set, undone, refused."""

import copy

import pytest
import torch
import transformers
from tiny_models import FAMILIES, logits
from torch import nn

import fas
from fas.errors import FASError, SiteError
from fas.surgery.attention import is_spiking_attention, recording_attention, use_dense_attention, use_spiking_attention
from fas.surgery.sites import find_sites
from fas.types import OPERANDS

# Twelve bits a factor through two blocks; a mask, cap or bias that is forgotten shows at tens of percent.
TWELVE_BITS = 0.02


def distance(one, other):
    return float((one - other).norm() / other.norm())


def converted(name, model=None, **options):
    family = FAMILIES[name]
    model = family.build() if model is None else model
    method = fas.FAS(**{"coverage": "full", "timesteps": 5, **options})
    return fas.convert(model, method, calibration=[family.batch(), family.batch(seed=2)])


def test_the_function_alone_changes_nothing_and_is_undone():
    family = FAMILIES["t5"]
    model, inputs = family.build(), family.batch(padded=True)
    with torch.no_grad():
        before = model(**inputs).logits
        use_spiking_attention(model)
        # The stacks of T5 hold copies of the configuration.
        assert model.decoder.config._attn_implementation == "fas_sdpa"
        assert torch.equal(model(**inputs).logits, before)
        use_dense_attention(model)
    assert {model.config._attn_implementation, model.encoder.config._attn_implementation} == {"sdpa"}
    assert not is_spiking_attention(model)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "vit"])
def test_eager_attention_stays_the_same_to_the_bit(name):
    family = FAMILIES[name]
    inputs = family.batch()
    model = family.build(attn_implementation="eager")
    with torch.no_grad():
        before = model(**inputs).logits
    # Twelve bits for the largest value seen, and three of headroom above it.
    converted(name, model, neuron="phase", timesteps=15)
    assert model.config._attn_implementation == "fas_eager"
    assert torch.equal(logits(model, inputs, network="ann"), before)
    assert 0 < distance(logits(model, inputs), before) < TWELVE_BITS
    fas.revert(model)
    assert model.config._attn_implementation == "eager"


def gemma2():
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=4, attn_logit_softcapping=2.0,
    )  # fmt: skip
    return transformers.Gemma2ForCausalLM(config).eval()


def test_capped_scores():
    model, inputs = gemma2(), FAMILIES["gemma"].batch()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        before = model(**inputs).logits
    converted("gemma", model, neuron="phase", timesteps=12)
    assert torch.equal(logits(model, inputs, network="ann"), before)
    assert 0 < distance(logits(model, inputs), before) < TWELVE_BITS


def test_every_factor_is_a_site_in_the_order_of_execution():
    sites = find_sites(FAMILIES["llama"].build(), "full")
    first = [(site.path.removeprefix("model.layers.0."), site.role, site.channels, site.signed) for site in sites[:7]]
    assert first == [
        ("self_attn.q_proj", "linear_input", 32, True),
        ("self_attn.operands.query", "query", 32, True),
        ("self_attn.operands.key", "key", 16, True),
        ("self_attn.operands.value", "value", 16, True),
        ("self_attn.operands.attention_weight", "attention_weight", 4, False),
        ("self_attn.o_proj", "linear_input", 32, True),
        ("mlp.gate_proj", "linear_input", 32, True),
    ]
    assert sites[1].layers == () and sites[0].layers[0] == "model.layers.0.self_attn.q_proj"
    few = find_sites(FAMILIES["llama"].build(), "full", exclude=["*.operands.key", "model.layers.1.*"])
    assert [site.role for site in few if site.role in OPERANDS] == ["query", "value", "attention_weight"]


def test_a_trace_leaves_nothing_behind():
    model = FAMILIES["gpt2"].build()
    names = [set(vars(module)) for module in model.modules()]
    find_sites(model, "full")
    assert [set(vars(module)) for module in model.modules()] == names
    assert model.config._attn_implementation == "sdpa"


class Attention(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.proj = nn.Linear(width, width)

    def forward(self, x, *_, **__):
        return torch.softmax(self.proj(x) @ x.mT, -1) @ x, None


def test_modules_called_attention_that_go_another_way():
    model = FAMILIES["gpt2"].build()
    model.transformer.h[0].attn = Attention(32)
    with pytest.raises(SiteError, match=r"^transformer\.h\.0\.attn \(Attention\) computes attention by itself"):
        find_sites(model, "full")
    plain = nn.Sequential(Attention(), nn.Linear(4, 4))
    with pytest.raises(SiteError, match="is not a transformers model, so its attention cannot be reached"):
        find_sites(plain, "full", probe={"input": torch.ones(3, 4)})
    with pytest.raises(SiteError, match="needs a transformers model"):
        use_spiking_attention(plain)


def test_a_function_that_is_neither_sdpa_nor_eager():
    model = FAMILIES["gpt2"].build()
    model.config._attn_implementation_internal = "flex_attention"
    with pytest.raises(SiteError, match=r"set to attention 'flex_attention'.*attn_implementation='sdpa' or 'eager'"):
        find_sites(model, "full")


@pytest.mark.parametrize(("argument", "what"), [("s_aux", "attention sinks"), ("cache", "a paged cache")])
def test_what_is_not_computed_is_refused(argument, what):
    model = FAMILIES["llama"].build()

    def extra(module, arguments, named):
        return arguments, {**named, argument: torch.zeros(4)}

    model.model.layers[0].self_attn.register_forward_pre_hook(extra, with_kwargs=True)
    with pytest.raises(FASError, match=f"LlamaAttention uses {what}"):
        find_sites(model, "full")
    assert model.config._attn_implementation == "sdpa"


def test_spikes_cannot_be_switched_off_by_choosing_another_function():
    model = converted("gpt2")
    with pytest.raises(ValueError, match="would leave 17 sites of coverage 'full' without spikes"):
        model.set_attn_implementation("sdpa")
    linear = fas.convert(FAMILIES["gpt2"].build(), fas.FAS(coverage="linear"))
    linear.set_attn_implementation("eager")
    assert linear.config._attn_implementation == "eager"


def test_recording_counts_every_call():
    model, calls = FAMILIES["albert"].build(), []
    with recording_attention(model, calls.append), torch.no_grad():
        model(**FAMILIES["albert"].batch())
    # One block, run twice; 3 rows of 9 tokens, 2 heads of 16.
    assert [call.query for call in calls] == [(3, 2, 9, 16)] * 2


@pytest.mark.parametrize("schedule", ["layerwise", "online"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "gemma3", "bloom"])
def test_the_cache_changes_nothing(name, schedule):
    model = converted(name, schedule=schedule, neuron="signed_if").double()
    ids = FAMILIES[name].batch(rows=2, length=7)["input_ids"]
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        first = model(input_ids=ids[:, :5], use_cache=True)
        rest = model(input_ids=ids[:, 5:], past_key_values=first.past_key_values).logits
    # Float64; some models turn positions into sines in float32, far below the gap to the next level.
    torch.testing.assert_close(torch.cat([first.logits, rest], 1), whole, rtol=1e-6, atol=1e-6)
    greedy = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached, fresh = (model.generate(ids, **greedy, use_cache=cache) for cache in (True, False))
    assert torch.equal(cached, fresh)


@pytest.mark.parametrize("operators", ["difference", "instant"])
def test_anytime_with_an_infinite_margin_is_the_online_schedule(operators):
    model = converted("gpt2", schedule="online", operators=operators, neuron="signed_if")
    greedy = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    ids = torch.tensor([[3, 7, 9, 4], [5, 6, 8, 2]])
    anytime = fas.Anytime(float("inf"))
    assert torch.equal(model.generate(ids, **greedy, custom_generate=anytime), model.generate(ids, **greedy))


def test_beams_of_an_encoder_decoder():
    model = converted("bart", schedule="online", neuron="signed_if")
    inputs = FAMILIES["bart"].batch()
    answer = model.generate(**inputs, num_beams=3, max_new_tokens=5, do_sample=False)
    assert torch.equal(
        answer, model.generate(**inputs, num_beams=3, max_new_tokens=5, do_sample=False, use_cache=False)
    )


def test_weights_can_be_seen():
    model = converted("gpt2", FAMILIES["gpt2"].build(attn_implementation="eager"))
    model.network = "snn"
    with torch.no_grad():
        seen = model.transformer.h[0].attn(torch.randn(2, 9, 32))[1]
    # Coded weights of a query sum to one: float32 rounding of nine summands.
    torch.testing.assert_close(seen.sum(-1), torch.ones(2, 2, 9))


def test_training_reaches_the_thresholds_of_all_factors():
    model = converted("gpt2")
    model.network = "quantised"
    batch = FAMILIES["gpt2"].batch()
    model.train()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if "operands" in n and "threshold" in n}
    assert len(gradients) == 8 and all(g is not None and bool(g.any()) for g in gradients.values())


def test_a_copy_has_its_own_populations():
    model, inputs = converted("gpt2"), FAMILIES["gpt2"].batch()
    twin = copy.deepcopy(model)
    answer = logits(model, inputs)
    with torch.no_grad():
        model.transformer.h[0].attn.operands.query.neuron.log_threshold.add_(1)
    assert torch.equal(logits(twin, inputs), answer) and not torch.equal(logits(model, inputs), answer)
