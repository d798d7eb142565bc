"""Discovery: which layers become sites, and what is said where none can be found."""

import logging

import pytest
import torch
import transformers
from tiny_models import FAMILIES
from torch import nn
from torch.nn import functional

import fas
from fas.errors import SiteError
from fas.surgery.left_dense import left_dense
from fas.surgery.probe import evaluating, probe_inputs
from fas.surgery.sites import block_of, find_sites, is_activation, is_linear, trace, unreached


class Mlp(nn.Module):
    """Two blocks; the activation is a function, a module, or a module that nothing linear follows."""

    def __init__(self, kind="module", blocks=2):
        super().__init__()
        self.kind = kind
        self.blocks = nn.ModuleList()
        for _ in range(blocks):
            block = nn.Module()
            block.up, block.act, block.down = nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5)
            self.blocks.append(block)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        for block in self.blocks:
            hidden = block.up(x)
            if self.kind == "module":
                hidden = block.act(hidden)
            elif self.kind == "function":
                hidden = functional.gelu(hidden)
            x = x + block.down(hidden)
            if self.kind == "last":
                x = block.act(x)
        return self.head(x)


PROBE = {"x": torch.ones(2, 5)}


def paths(sites):
    return [site.path for site in sites]


def test_mlp_and_linear():
    assert paths(find_sites(Mlp(), "mlp", probe=PROBE)) == ["blocks.0.down", "blocks.1.down"]
    sites = find_sites(Mlp(), "linear", probe=PROBE)
    assert paths(sites) == ["blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "head"]
    assert [site.channels for site in sites] == [5, 7, 5, 7, 5]
    assert [site.role for site in sites] == ["linear_input", "mlp", "linear_input", "mlp", "linear_input"]


def test_a_functional_activation_names_the_block_and_the_way_out():
    message = (
        r"no MLP site found in blocks\.0: it calls no activation module; its linear layers are "
        r"blocks\.0\.up, blocks\.0\.down\. Exclude it \(exclude=\['blocks\.0\.\*'\]\), or use coverage 'linear'"
    )
    with pytest.raises(SiteError, match=message):
        find_sites(Mlp("function"), "mlp", probe=PROBE)
    with pytest.raises(SiteError, match=r"no MLP site found in blocks\.1"):
        find_sites(Mlp("function"), "mlp", exclude=["blocks.0.*"], probe=PROBE)


def test_an_activation_that_nothing_follows():
    # The last block's activation stands in front of the head, which lies outside of every block.
    with pytest.raises(SiteError, match=r"no MLP site found in blocks\.0: nothing linear follows .* blocks\.0\.act"):
        find_sites(Mlp("last", blocks=1), "mlp", probe=PROBE)


def test_linear_coverage_needs_no_activation():
    for kind in ("function", "last"):
        assert len(find_sites(Mlp(kind), "linear", probe=PROBE)) == 5


def test_patterns_exclude():
    found = paths(find_sites(Mlp(), "linear", exclude=["head", "blocks.0.*"], probe=PROBE))
    assert found == ["blocks.1.up", "blocks.1.down"]
    assert paths(find_sites(Mlp(), "mlp", exclude=["blocks.0.*"], probe=PROBE)) == ["blocks.1.down"]
    assert paths(find_sites(Mlp(), "linear", exclude=["*.[!1].*"], probe=PROBE)) == [*found, "head"]
    # Letter case matters, as in the names themselves. Names that stand deeper or are not there: the nearest are named.
    for pattern, near in (("HEAD", "head"), ("ocks.0", r"blocks\.0.* or write '\*ocks\.0\*'"), ("blocks.7", "blocks")):
        told = rf"exclude='{pattern}' matches no name of Mlp; names near it are .*{near}"
        with pytest.raises(SiteError, match=told):
            find_sites(Mlp(), "linear", exclude=["head", pattern], probe=PROBE)


@pytest.mark.parametrize("coverage", ["mlp", "linear"])
def test_nothing_left(coverage):
    message = rf"Mlp has no site for coverage '{coverage}'.*patterns \['\*'\].*leaf modules are GELU, Linear"
    with pytest.raises(SiteError, match=message):
        find_sites(Mlp(), coverage, exclude=["*"], probe=PROBE)


def test_a_model_without_linear_layers():
    model = nn.Sequential(nn.Conv1d(1, 1, 1), nn.ReLU())
    with pytest.raises(SiteError, match="leaf modules are Conv1d, ReLU"):
        find_sites(model, "linear", probe={"input": torch.ones(1, 1, 4)})


class OwnInput(nn.Module):
    main_input_name = "input_features"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, input_features):
        return self.fc(input_features)


def test_an_input_that_cannot_be_made_up():
    with pytest.raises(SiteError, match=r"OwnInput takes 'input_features'.*pass probe=\{\.\.\.\}, a batch of one"):
        find_sites(OwnInput())
    assert paths(find_sites(OwnInput(), probe={"input_features": torch.ones(1, 3)})) == ["fc"]


def whisper():
    config = transformers.WhisperConfig(
        vocab_size=60, num_mel_bins=8, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_source_positions=10,
        max_target_positions=12, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    sound = {"input_features": torch.randn(1, 8, 20), "decoder_input_ids": torch.tensor([[1, 3]])}
    return transformers.WhisperForConditionalGeneration(config), sound, ["encoder.conv1", "encoder.conv2"]


def wav2vec2():
    config = transformers.Wav2Vec2Config(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        conv_dim=(8, 8), conv_stride=(4, 4), conv_kernel=(8, 8), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    return transformers.Wav2Vec2ForCTC(config), {"input_values": torch.randn(1, 400)}, ["conv_layers.*.conv"]


@pytest.mark.parametrize("build", [whisper, wav2vec2])
def test_models_of_sound_ask_for_a_probe_and_convert_with_it(build):
    torch.manual_seed(0)
    model, sound, dense = build()
    name = next(iter(sound))
    with pytest.raises(SiteError, match=rf"takes '{name}', for which no probe input is known; pass probe="):
        fas.convert(model, calibration=[sound])
    fas.convert(model.eval(), fas.FAS(timesteps=16, neuron="signed_if"), probe=sound, calibration=[sound])
    left = left_dense(model, sound)
    assert all(any(path.endswith(end) for path in left) for end in dense)
    with torch.no_grad():
        spiking = model(**sound).logits
        model.network = "ann"
        expected = model(**sound).logits
    # Thirty-three levels, and two blocks: a tenth of the size of the logits.
    assert 0 < float((spiking - expected).norm() / expected.norm()) < 0.1


def test_layers_the_probe_does_not_call_are_logged(caplog):
    model = Mlp()
    model.spare, model.left_out = nn.Linear(2, 2), nn.Linear(2, 2)
    with caplog.at_level(logging.WARNING, logger="fas"):
        sites = find_sites(model, "linear", exclude=["left_out"], probe=PROBE)
    assert "spare" not in paths(sites)
    assert [record.getMessage() for record in caplog.records] == ["spare stays dense: the probe run never calls it"]
    assert unreached(model, trace(model, PROBE)) == ["spare", "left_out"]
    caplog.clear()
    find_sites(model, "mlp", probe=PROBE)
    assert not caplog.records


def test_layers_that_read_the_same_tensor_share_a_site():
    sites = find_sites(FAMILIES["llama"].build(), "linear")
    first = sites[0]
    assert first.path == "model.layers.0.self_attn.q_proj"
    assert first.also == ("model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj")
    assert first.layers == (first.path, *first.also)
    gate = next(site for site in sites if "gate" in site.path)
    assert gate.also == ("model.layers.0.mlp.up_proj",) and gate.role == "linear_input"
    # A gated product is no quantised SiLU: the activation stays, and the site has a sign.
    down = next(site for site in sites if "down" in site.path)
    assert (down.role, down.signed, down.activation) == ("mlp", True, None)


def test_the_keys_of_all_decoder_blocks_share_the_encoders_answer():
    sites = find_sites(FAMILIES["t5"].build(), "linear")
    cross = next(site for site in sites if site.path.endswith("decoder.block.0.layer.1.EncDecAttention.k"))
    assert cross.also == tuple(
        f"decoder.block.{i}.layer.1.EncDecAttention.{n}" for i, n in ((0, "v"), (1, "k"), (1, "v"))
    )


@pytest.mark.parametrize("coverage", ["mlp", "linear"])
def test_relu_is_replaced_and_gelu_on_request(coverage):
    relu = [s for s in find_sites(FAMILIES["opt"].build(), coverage) if s.role == "mlp"]
    assert [(s.signed, s.activation) for s in relu] == [
        (False, f"model.decoder.layers.{i}.activation_fn") for i in range(2)
    ]
    gelu = FAMILIES["gpt2"].build()
    kept = [s for s in find_sites(gelu, coverage) if s.role == "mlp"]
    assert [(s.signed, s.activation) for s in kept] == [(True, None)] * 2
    replaced = [s for s in find_sites(gelu, coverage, replace_activation=True) if s.role == "mlp"]
    assert [(s.signed, s.activation) for s in replaced] == [(False, f"transformer.h.{i}.mlp.act") for i in range(2)]


# BART's own mask looks at values, which the meta device does not have.
@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {"bart"}))
def test_the_meta_device_shows_the_same(name):
    family = FAMILIES[name]
    model = family.build()
    with torch.device("meta"):
        shape = getattr(transformers, family.model)(model.config)
    assert {p.device.type for p in shape.parameters()} == {"meta"}
    assert find_sites(shape, "linear") == find_sites(model, "linear")


class SharedRelu(nn.Module):
    """Two blocks around one ReLU; ``wide`` lets a second layer read its output."""

    def __init__(self, blocks=2, wide=False):
        super().__init__()
        self.blocks = Mlp(blocks=blocks).blocks
        relu = nn.ReLU()
        for block in self.blocks:
            block.act = relu
            block.side = nn.Linear(7, 5) if wide else None

    def forward(self, x):
        for block in self.blocks:
            hidden = block.act(block.up(x))
            x = x + block.down(hidden) + (block.side(hidden) if block.side else 0)
        return x


def test_a_relu_of_several_blocks_stays():
    sites = find_sites(SharedRelu(), "linear", probe=PROBE)
    assert [site.signed for site in sites] == [True] * 4 and not any(site.activation for site in sites)


@pytest.mark.parametrize(
    ("coverage", "exclude", "activation"),
    [
        ("linear", [], "blocks.0.act"),
        # Now the layer beside it stays dense and needs the ReLU.
        ("linear", ["*.side"], None),
        ("mlp", [], None),
    ],
)
def test_a_relu_that_a_dense_layer_reads_stays(coverage, exclude, activation):
    sites = find_sites(SharedRelu(1, wide=True), coverage, exclude=exclude, probe=PROBE)
    down = next(site for site in sites if site.path == "blocks.0.down")
    assert (down.activation, down.signed) == (activation, activation is None)


class ReluAndSum(nn.Module):
    """A block whose ReLU goes to a linear layer and, in some kinds, into a sum or behind a reshape as well."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.blocks = kind, nn.ModuleList([nn.Module()])
        block = self.blocks[0]
        block.up, block.act, block.down = nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5)

    def forward(self, x):
        block = self.blocks[0]
        hidden = block.act(block.up(x))
        if self.kind == "dropout":
            hidden = functional.dropout(hidden, 0.5, self.training)
        y = block.down(hidden)
        if self.kind == "sum":
            y = y + hidden
        elif self.kind == "reshaped":
            y = y + hidden.view(-1, 5).mean(0)
        return y


@pytest.mark.parametrize("coverage", ["mlp", "linear"])
@pytest.mark.parametrize(
    ("kind", "activation"), [("alone", "blocks.0.act"), ("dropout", "blocks.0.act"), ("sum", None), ("reshaped", None)]
)
def test_a_relu_that_something_else_reads_stays(kind, activation, coverage):
    model = ReluAndSum(kind).eval()
    site = find_sites(model, coverage, probe=PROBE)[-1]
    assert (site.path, site.activation, site.signed) == ("blocks.0.down", activation, activation is None)


def test_a_relu_that_runs_twice_in_one_shared_block_is_replaced():
    shared = FAMILIES["albert"].build(hidden_act="relu")
    (site,) = find_sites(shared, "mlp")
    assert not site.signed and site.activation == "albert.encoder.albert_layer_groups.0.albert_layers.0.activation"


def test_discovery_leaves_no_trace():
    model = FAMILIES["gpt2"].build().train()
    find_sites(model, "linear")
    assert model.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    # Neither does a failure.
    with pytest.raises(TypeError, match="unexpected"):
        find_sites(Mlp(), probe={"y": torch.ones(1)})


def test_numbers_in_names_make_no_blocks():
    class Numbered(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.act, self.fc2 = nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)
            self.layers = Mlp().blocks

        def forward(self, x):
            for block in self.layers:
                x = x + block.down(block.act(block.up(x)))
            return self.fc2(self.act(self.fc1(x[:, :3])))

    # fc1 and fc2 stand outside of the blocks, like a pooler; they have no MLP of their own to be missed.
    assert paths(find_sites(Numbered(), "mlp", probe=PROBE)) == ["layers.0.down", "layers.1.down"]


def test_a_model_called_by_keyword():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 4)])
            self.act, self.head = nn.ReLU(), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(input=self.act(input=self.layers[0](input=x)))

    assert paths(find_sites(Keyword(), probe={"x": torch.ones(1, 3)})) == ["layers.0", "head"]


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("transformer.h.3.mlp.c_proj", "transformer.h.3"),
        ("decoder.block.10.layer.2.wo", "decoder.block.10"),
        ("0", "0"),
        ("12.fc", "12"),
        ("lm_head", None),
        ("bert.pooler.dense", None),
        ("stage1.fc", None),
        ("fc2", None),
    ],
)
def test_the_outermost_numbered_module_is_the_block(path, block):
    assert block_of(path) == block


def test_what_counts_as_linear_and_as_activation():
    conv = transformers.pytorch_utils.Conv1D(3, 4)
    assert is_linear(nn.Linear(2, 2)) and is_linear(conv)
    assert not any(
        is_linear(m) for m in (nn.Conv1d(1, 1, 1), nn.LayerNorm(2), nn.Embedding(2, 2), nn.Bilinear(1, 1, 1))
    )
    assert all(is_activation(m) for m in (nn.GELU(), nn.ReLU(), nn.SiLU(), nn.Tanh(), nn.Sigmoid(), nn.LeakyReLU()))
    assert not any(is_activation(m) for m in (nn.Sequential(nn.ReLU()), nn.Linear(1, 1), nn.Dropout(), nn.LayerNorm(2)))


def test_probes_fit_the_model():
    assert probe_inputs(FAMILIES["gpt2"].build())["input_ids"].tolist() == [[0, 1, 2, 3]]
    assert set(probe_inputs(FAMILIES["bart"].build())) == {"input_ids", "decoder_input_ids"}
    pixels = probe_inputs(FAMILIES["vit"].build())["pixel_values"]
    assert pixels.shape == (1, 3, 16, 16)
    few = FAMILIES["gpt2"].build(vocab_size=2, bos_token_id=0, eos_token_id=0)
    assert probe_inputs(few)["input_ids"].tolist() == [[0, 1, 0, 1]]


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_is_undone(training):
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train(training)
    with pytest.raises(RuntimeError, match="inside"), evaluating(model):
        assert not model.training and not model[1].training and not torch.is_grad_enabled()
        raise RuntimeError("inside")
    assert model.training is training and model[1].training is training and torch.is_grad_enabled()
