"""What holds for every method on the networks of the papers: VGG-16, ResNet-18 and -20, PreActResNet-18, and ViT."""

import copy
import logging

import paper_networks
import pytest
import torch
from torch import nn

import fas
from fas.energy.inventory import operations
from fas.errors import SiteError
from fas.methods.fast_snn import FastSNN
from fas.methods.las import LAS
from fas.methods.qcfs_only import QCFSOnly
from fas.methods.rate_norm import RateNorm
from fas.methods.threshold_balancing import ThresholdBalancing

STEPS = 3
METHODS = {
    "fas": lambda: fas.FAS(timesteps=STEPS),
    "las": lambda: LAS(timesteps=STEPS, coverage="linear", gated=False),
    # Weights as they are, so that the dense network can be compared.
    "fast_snn": lambda: FastSNN(bits=2, tune_epochs=0),
    "qcfs_only": lambda: QCFSOnly(timesteps=STEPS, levels=STEPS),
    "rate_norm": lambda: RateNorm(timesteps=STEPS, fit_epochs=1, potential=0.5),
    "threshold_balancing": lambda: ThresholdBalancing(timesteps=STEPS, potential=0.5),
}
# Convolutions and linear layers.
LAYERS = {"vgg16": 16, "resnet18": 21, "resnet20": 20, "preact_resnet18": 21}


def check(network, method, width):
    # Doubles: of half a million neurons in float32 one comes near enough to its threshold for rounding to decide.
    dense, x = paper_networks.build(network, width).double(), paper_networks.photographs(2).double()
    model = fas.convert(
        copy.deepcopy(dense), METHODS[method](), probe={"x": x[:1]}, calibration=[{"x": x}]
    )  # fmt: skip
    layers = {path for site in model.sites for path in site.layers}
    # To the methods of papers on convolutional networks the image is a constant current.
    image = method in ("fas", "las")
    assert len(layers) == LAYERS[network] - (not image)
    with torch.no_grad():
        wanted = dense(x)
        model.network = "ann"
        # Normalisations were folded, which rounds.
        scale = float(wanted.abs().max())
        torch.testing.assert_close(model(x), wanted, rtol=0, atol=1e-9 * scale)
        model.network = "snn"
        made = model(x)
        assert made.shape == wanted.shape and bool(made.isfinite().all()) and not torch.equal(made, wanted)
        with fas.record(model) as spikes:
            assert torch.equal(model(x), made)
    assert spikes.spikes_per_neuron > 0 and len(spikes.sites) == len(model.sites)
    if method != "las":
        model.schedule = "layerwise"
        with torch.no_grad():
            collapsed = model(x)
            model.execution = "stepped"
            # The same counts, whose products are summed in another order.
            torch.testing.assert_close(model(x), collapsed, rtol=0, atol=1e-9 * scale)
            model.execution, model.network = "collapsed", "quantised"
            if model.levels == model.timesteps and method != "fas":
                torch.testing.assert_close(model(x), collapsed, rtol=0, atol=1e-9 * scale)
    fas.revert(model)
    with torch.no_grad():
        torch.testing.assert_close(model(x), wanted, rtol=0, atol=1e-9 * scale)


# Every method on a network with branches, every network with the methods that differ most; below, all pairs.
@pytest.mark.parametrize(
    ("network", "method"),
    [*(("preact_resnet18", method) for method in METHODS)]
    + [(network, method) for network in ("vgg16", "resnet18", "resnet20") for method in ("fas", "rate_norm")],
)
def test_every_method_converts_every_network(network, method):
    check(network, method, width=4)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", paper_networks.NETWORKS)
def test_in_their_true_widths(network, method):
    check(network, method, width=paper_networks.NETWORKS[network][1])


def transformer(packed):
    torch.manual_seed(0)
    return paper_networks.VisionTransformer(16, packed).eval()


@pytest.mark.parametrize("packed", [False, True], ids=["layers", "packed"])
@pytest.mark.parametrize("method", METHODS)
def test_a_plain_vision_transformer(packed, method, caplog):
    dense, x = transformer(packed), paper_networks.photographs(2)
    with torch.no_grad():
        wanted = dense(x)
    recipe = METHODS[method]()
    if method not in ("fas", "las", "fast_snn"):
        # Neurons without a sign stand in the place of GELU, and nowhere else.
        with pytest.raises(SiteError, match="receives values of both signs"):
            recipe.select(dense, {"x": x[:1]})
        recipe = recipe.with_options(coverage="mlp", replace_activation=True)
    with caplog.at_level(logging.WARNING, "fas"):
        model = fas.convert(dense, recipe, probe={"x": x[:1]}, calibration=[{"x": x}])
    layers = {path for site in model.sites for path in site.layers}
    assert {"layers.0.mlp.3", "layers.1.mlp.3"} <= layers
    with torch.no_grad():
        made = model(x)
        assert bool(made.isfinite().all()) and not torch.equal(made, wanted)
        model.network = "ann"
        torch.testing.assert_close(model(x), wanted, rtol=0, atol=1e-5)
    if recipe.coverage == "mlp":
        return
    attention = {"self_attention.out_proj"} if packed else {"qkv", "proj"}
    of_attention = {f"layers.{i}.{name}" for i in range(2) for name in attention}
    floats = [o.what for o in operations(model, {"x": x[:1]}) if o.floats]
    if packed:
        # Packed weights are no layers: the whole module stays float, and that is said.
        assert not of_attention & layers and any("multi_head_attention" in what for what in floats)
        assert all(f"{path} stays dense" in caplog.text for path in of_attention)
    else:
        assert of_attention <= layers and "scaled_dot_product" in floats
        assert "stays dense" not in caplog.text and "linear" not in floats


def test_a_transformer_that_is_no_transformers_model_has_no_full_coverage():
    with pytest.raises(SiteError, match="its attention cannot be reached: use coverage 'linear'"):
        fas.FAS(coverage="full").select(transformer(False), {"x": paper_networks.photographs(1)})


def test_every_layer_of_the_papers_networks_is_one_of_theirs():
    for name, number in LAYERS.items():
        model = paper_networks.build(name, 4)
        assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == number
