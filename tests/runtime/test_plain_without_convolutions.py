"""Plain modules without convolutions: perceptrons, transformers of one's own and torch's."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import fas
from fas.errors import SiteError


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 9), nn.Linear(9, 4)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.before, self.between = nn.LayerNorm(16), nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

    def forward(self, x):
        y = self.before(x)
        factors = [layer(y).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        attended = functional.scaled_dot_product_attention(*factors, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.between(x))


def encoder(**options):
    layer = nn.TransformerEncoderLayer(16, 2, 24, **{"batch_first": True, **options})
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=layer.self_attn.batch_first)


# A network, the name of its argument, its sites of coverage linear.
NETWORKS = {
    "perceptron": (Perceptron, "x", ["first", "second"]),
    "sequence": (lambda: nn.Sequential(nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 4)), "input", ["0", "2"]),
    "transformer": (
        lambda: nn.Sequential(Block(), Block(), nn.Linear(16, 5)),
        "input",
        [*(f"{i}.{layer}" for i in (0, 1) for layer in ("query", "out", "mlp.0", "mlp.2")), "2"],
    ),
    "torch": (encoder, "src", [f"layers.{i}.linear{n}" for i in (0, 1) for n in (1, 2)]),
    "torch, module": (
        lambda: encoder(activation=nn.ReLU()), "src", [f"layers.{i}.linear{n}" for i in (0, 1) for n in (1, 2)]
    ),
}  # fmt: skip


def built(name):
    torch.manual_seed(0)
    build, argument, sites = NETWORKS[name]
    return build().eval(), {argument: torch.randn(4, 7, 16)}, sites


def converted(name, **options):
    model, batch, _ = built(name)
    probe = {argument: x[:1] for argument, x in batch.items()}
    return fas.convert(model, fas.FAS(timesteps=6, **options), probe=probe, calibration=[batch]), batch


def answers(model, batch, **settings):
    with torch.no_grad(), model.simulation.using(**settings):
        return model(**batch)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_spiking_network_is_near_the_dense_one_and_not_it(name, tmp_path):
    dense, batch, sites = built(name)
    with torch.no_grad():
        before = dense(**batch)
    model, _ = converted(name)
    assert [site.path for site in model.sites] == sites
    after = answers(model, batch)
    # Eight bits of relative error about; torch's encoders would read the weights past the spikes, with none.
    assert 1e-5 < float((after - before).norm() / before.norm()) < 0.02
    # Layer by layer, torch's encoders round otherwise than in their fused form.
    torch.testing.assert_close(answers(model, batch, network="ann"), before, rtol=1e-5, atol=1e-6)
    with fas.record(model) as spikes, torch.no_grad():
        model(**batch)
    assert set(spikes.sites) == set(sites) and all(site.spikes_per_neuron > 0 for site in spikes.sites.values())
    torch.testing.assert_close(answers(model, batch, execution="stepped"), after, rtol=1e-4, atol=1e-5)

    model.save_pretrained(tmp_path / "snn")
    again = fas.load_module(built(name)[0], tmp_path / "snn")
    assert torch.equal(answers(again, batch), after)
    with torch.no_grad():
        assert torch.equal(fas.revert(model)(**batch), before)


@pytest.mark.parametrize("name", NETWORKS)
def test_online(name):
    model, batch = converted(name, neuron="signed_if", schedule="online")
    dense = answers(model, batch, network="ann")
    assert float((answers(model, batch) - dense).norm() / dense.norm()) < 0.2


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_padding_of_torchs_encoder():
    model, batch, _ = built("torch")
    batch["src_key_padding_mask"] = torch.arange(7).expand(4, 7) >= torch.tensor([[7], [5], [4], [2]])
    kept = ~batch["src_key_padding_mask"]
    with torch.no_grad():
        before = model(**batch)[kept]
    fas.convert(model, fas.FAS(timesteps=6), probe={name: x[:1] for name, x in batch.items()}, calibration=[batch])
    assert 1e-5 < float((answers(model, batch)[kept] - before).norm() / before.norm()) < 0.02


def test_projections_that_torch_packs_are_named_as_left_dense():
    model, batch = encoder().eval(), {"src": torch.randn(4, 7, 16)}
    left = fas.convert(model, fas.FAS(timesteps=4), probe=batch, calibration=[batch]).fas_config.left_dense
    # Query, key, value and output beside two layers of 16 to 24.
    assert left == pytest.approx({"layers.*.self_attn": 4 * 16 / (4 * 16 + 2 * 24)})


def test_a_sequence_in_the_first_dimension_runs_layerwise_only():
    model, batch = encoder(batch_first=False).eval(), {"src": torch.randn(7, 4, 16)}
    fas.convert(model, fas.FAS(timesteps=4, neuron="signed_if"), probe=batch, calibration=[batch])
    assert answers(model, batch).isfinite().all()
    with pytest.raises(ValueError, match=r"self_attn \(MultiheadAttention\) has the sequence first.*'layerwise'"):
        answers(model, batch, schedule="online")


def test_what_is_missing_is_named():
    model, batch, _ = built("perceptron")
    with pytest.raises(SiteError, match=r"Perceptron is not a transformers model .*pass probe="):
        fas.convert(model, calibration=[batch])
    with pytest.raises(SiteError, match=r"no linear layer follows an activation module .*coverage 'linear'"):
        fas.convert(model, fas.FAS(coverage="mlp"), probe=batch, calibration=[batch])
    with pytest.raises(SiteError, match="so its attention cannot be reached: use coverage 'linear'"):
        fas.convert(model, fas.FAS(coverage="full"), probe=batch, calibration=[batch])


def test_the_mlps_of_a_plain_transformer():
    model, batch = converted("transformer", coverage="mlp")
    assert [site.path for site in model.sites] == ["0.mlp.2", "1.mlp.2"] and answers(model, batch).isfinite().all()
