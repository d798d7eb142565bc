"""Experts whose weights transformers keep in one tensor: every expert's rows are driven by spikes."""

import logging
import pickle

import pytest
import torch
import transformers
from torch import nn

import fas
from fas.energy.count import count_operations
from fas.errors import FASError
from fas.layers.experts import SpikingExpert
from fas.surgery.replace import populations, spiking_layers

_SIZES = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "num_experts_per_tok": 2, "eos_token_id": 0,
    "bos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "Qwen3Moe": {"moe_intermediate_size": 24, "num_experts": 4, "head_dim": 8},
    "Mixtral": {"num_local_experts": 4},
    "GptOss": {
        "num_local_experts": 4, "head_dim": 8, "layer_types": ["full_attention"] * 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "DeepseekV3": {
        "num_key_value_heads": 4, "moe_intermediate_size": 24, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 0, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
        "v_head_dim": 8,
    },
    "GraniteMoe": {"num_local_experts": 4},
    # Its shared expert reads the very tensor that the others get rows of; three of four layers attend linearly.
    "Qwen3Next": {
        "num_hidden_layers": 4, "head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 4, "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
    },
}  # fmt: skip


def build(name="Qwen3Moe"):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**_SIZES, **FAMILIES[name]})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model


def batch(rows=3, length=9, seed=1):
    ids = torch.randint(3, 100, (rows, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits(model, **settings):
    with torch.no_grad(), model.simulation.using(**settings):
        return model(**batch()).logits


def quantised(x, population, steps):
    """The plain statement: the nearest of the levels that a signed neuron has, in float64."""
    unit = population.threshold.double() / steps
    level = torch.floor((x - population.offset.double()) / unit + population.v_init.double()).clamp(-steps, steps)
    return level * unit + population.offset.double()


def by_hand(experts, hidden, index, weights, steps):
    """Token by token, expert by expert: what each of them receives, multiplies and adds."""
    answer = torch.zeros_like(hidden)
    for token, x in enumerate(hidden):
        for e, share in zip(index[token].tolist(), weights[token], strict=True):
            up, down = experts.up[e], experts.down[e]
            w, v = experts.gate_up_proj[e].double(), experts.down_proj[e].double()
            if experts.is_transposed:
                w, v = w.T, v.T
            bias = (experts.gate_up_proj_bias[e], experts.down_proj_bias[e]) if experts.has_bias else (0, 0)
            inner = w @ quantised(x, up.population, steps) + bias[0] + up.correction.double()
            inner = experts._apply_gate(inner.unsqueeze(0))[0]
            out = v @ quantised(inner, down.population, steps) + bias[1] + down.correction.double()
            answer[token] += share * out
    return answer


@pytest.mark.parametrize("name", FAMILIES)
def test_spikes_drive_the_rows_of_the_experts_that_a_token_is_given_to(name, tmp_path):
    model = build(name)
    with torch.no_grad():
        dense, keys = model(**batch()).logits, set(model.state_dict())
    fas.convert(model, fas.FAS(timesteps=8, neuron="signed_if"), calibration=[batch()])
    experts = next(m for m in model.modules() if hasattr(m, "down_proj") and m.down_proj.ndim == 3)
    assert len({layer.population for layer in experts.up}) == 1 and len({d.population for d in experts.down}) == 4
    assert torch.equal(logits(model, network="ann"), dense)
    spiking = logits(model)
    assert not torch.equal(spiking, dense)
    torch.testing.assert_close(logits(model, execution="stepped"), spiking)
    model.double()
    hidden = torch.randn(7, 32, dtype=torch.float64)
    index, weights = torch.rand(7, 4).topk(2).indices, torch.rand(7, 2).double()
    with torch.no_grad():
        torch.testing.assert_close(experts(hidden, index, weights), by_hand(experts, hidden, index, weights, 8))
    model.float().save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), spiking)
    fas.revert(model)
    with torch.no_grad():
        assert torch.equal(model(**batch()).logits, dense)
    assert set(model.state_dict()) == keys and not hasattr(experts, "up")


def test_experts_that_no_token_reached_are_named_and_take_the_thresholds_of_their_layer(caplog):
    model = build()
    with caplog.at_level(logging.WARNING):
        fas.convert(model, fas.FAS(timesteps=8, neuron="signed_if"), calibration=[batch(1, 1)])
    found = populations(model)
    missed = [path for path in found if path in caplog.text]
    assert len(missed) == 4 and "more tokens" in caplog.text  # one token reaches two of four experts in each layer
    for path in missed:
        layer = path.rpartition(".")[0]
        others = [p for name, p in found.items() if name.startswith(layer) and name not in missed]
        mean = torch.stack([p.threshold.mean() for p in others]).mean()
        torch.testing.assert_close(found[path].threshold, mean.expand(24))
    assert logits(model).isfinite().all()


def test_padding_does_not_count_for_the_thresholds_of_experts():
    short, padded = batch(2, 5), batch(2, 5)
    padded = {name: nn.functional.pad(value, (0, 4)) for name, value in padded.items()}
    one, other = (
        fas.convert(build(), fas.FAS(timesteps=8, neuron="signed_if"), calibration=[given]) for given in (short, padded)
    )
    for path, population in populations(one).items():
        torch.testing.assert_close(populations(other)[path].threshold, population.threshold, rtol=1e-3, atol=1e-5)


def test_energy_counts_the_additions_of_the_experts_and_the_products_of_dense_ones():
    model = fas.convert(build(), fas.FAS(timesteps=8, neuron="signed_if"), calibration=[batch()])
    with torch.no_grad(), fas.record(model) as spikes, count_operations(model) as counts:
        model(**batch())
    sent = {path: site.spikes for path, site in spikes.sites.items() if ".experts." in path}
    fan_out = {"up": 48, "down": 32}  # gate and up of one expert; the hidden size
    want = sum(number * fan_out[path.split(".")[-2]] for path, number in sent.items())
    found = sum(c.additions for (_, path), c in counts.places.items() if ".experts." in path)
    assert found == want > 0 and not counts.uncounted
    products = 27 * 2 * (48 * 32 + 24 * 32)  # tokens, experts of each, weights of one
    left_dense = fas.convert(build(), fas.FAS(timesteps=8, neuron="signed_if", exclude=("*.experts.*",)))
    for made, kind in ((model, "dense_multiply_adds"), (left_dense, "multiply_adds")):
        with torch.no_grad(), made.simulation.using(network="ann"), count_operations(made) as counts:
            made(**batch())
        found = sum(getattr(c, kind) for (_, path), c in counts.places.items() if ".experts" in path)
        assert found == 2 * products and not counts.uncounted


def test_experts_in_other_settings():
    model = fas.convert(build(), fas.FAS(timesteps=8, neuron="signed_if", coverage="full"), calibration=[batch()])
    experts = model.model.layers[0].mlp.experts
    given = torch.randn(7, 32), torch.rand(7, 4).topk(2).indices, torch.rand(7, 2)
    with torch.inference_mode():
        exact = experts(*given)
        model.weights = "int8"
        error = (experts(*given) - exact).norm() / exact.norm()
        model.weights = "float"
    assert 0 < error < 0.05  # a percent or so a layer
    with pytest.raises(FASError, match=r"experts\.up\.0.* run layerwise only"):
        logits(model, schedule="online")
    mlp = fas.convert(build(), fas.FAS(timesteps=8, neuron="signed_if", coverage="mlp"), calibration=[batch()])
    assert sum(isinstance(layer, SpikingExpert) for layer in spiking_layers(mlp).values()) == 8


def test_what_stays_dense_is_named_with_its_share(caplog):
    tokens, experts, router = 4, 2 * (48 * 32 + 24 * 32), 4 * 32
    attention, head = 32 * 32 + 2 * 16 * 32 + 32 * 32, 100 * 32
    whole = tokens * (2 * (experts + router + attention) + head)
    model = fas.convert(build(), fas.FAS(timesteps=8, neuron="signed_if"))
    assert "left dense" not in caplog.text  # a router is a small share, which the log tells on its lower level
    want = {"model.layers.*.mlp.gate": 2 * tokens * router / whole}
    assert model.fas_config.left_dense == pytest.approx(want)
    left = fas.convert(
        build(), fas.FAS(timesteps=8, neuron="signed_if", exclude=("*.experts.*",))
    ).fas_config.left_dense
    assert left["model.layers.*.mlp.experts"] == pytest.approx(2 * tokens * experts / whole)
    mlp = fas.convert(build(), fas.FAS(timesteps=8, neuron="signed_if", coverage="mlp")).fas_config.left_dense
    assert mlp["model.layers.*.mlp.experts"] == pytest.approx(2 * tokens * experts * 2 / 3 / whole)
    assert sum(mlp.values()) == pytest.approx(1 - 2 * tokens * experts / 3 / whole)
    assert fas.FASConfig(**model.fas_config.to_dict()).left_dense == model.fas_config.left_dense


def test_what_is_not_recognised_stays_dense_loudly(caplog):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(32, 32))

        def forward(self, x):
            return x @ self.weight

    model = build()
    model.model.layers[1].self_attn.o_proj = Own()
    fas.convert(model, fas.FAS(timesteps=8, neuron="signed_if"))
    assert "left dense" in caplog.text and "model.layers.*.self_attn.o_proj" in caplog.text


@pytest.mark.parametrize("coverage", ["mlp", "linear", "full"])
def test_a_linear_layer_that_returns_more_than_its_map_stays_dense(coverage, caplog):
    # Llama 4's router is one; its experts are a product of many matrices, which is named.
    torch.manual_seed(0)
    sizes = {**_SIZES, "intermediate_size_mlp": 48, "head_dim": 8, "num_local_experts": 4, "attention_chunk_size": 16}
    model = transformers.Llama4ForCausalLM(transformers.Llama4TextConfig(**sizes)).eval()
    with torch.no_grad():
        before = model(**batch()).logits
    with caplog.at_level(logging.WARNING):
        fas.convert(model, fas.FAS(timesteps=4, coverage=coverage), calibration=[batch()])
    assert "the probe run never calls it" not in caplog.text
    assert not any("router" in layer for site in model.sites for layer in site.layers)
    assert {"model.layers.*.feed_forward.router", "model.layers.*.feed_forward.experts"} <= set(
        model.fas_config.left_dense
    )
    assert torch.equal(logits(model, network="ann"), before) and logits(model).isfinite().all()
    assert model.generate(**batch(), max_new_tokens=2).shape == (3, 11)


def test_a_model_with_experts_can_be_pickled():
    model = fas.convert(build(), fas.FAS(timesteps=4), calibration=[batch()])
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(again), logits(model))
    assert type(fas.revert(again).model.layers[0].mlp.experts) is type(build().model.layers[0].mlp.experts)
