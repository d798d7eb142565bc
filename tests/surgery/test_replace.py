"""Exchanging layers: in place, once, and back."""

import pytest
import torch
from tiny_models import FAMILIES, linear_layers
from torch import nn

from fas.errors import SiteError
from fas.layers.linear import SpikingLinear
from fas.layers.simulation import Simulation
from fas.neurons.signed_if import SignedIF
from fas.surgery.replace import attach, detach, populations, spiking_layers
from fas.surgery.sites import find_sites
from fas.types import Site


def signed(site):
    return SignedIF(signed=site.signed)


def attached(name="gpt2", coverage="linear", **options):
    model = FAMILIES[name].build()
    sites = find_sites(model, coverage)
    attach(model, sites, Simulation(network="ann"), signed, **options)
    return model, sites


def test_every_site_gets_one_population_and_all_its_layers():
    model, sites = attached("llama")
    layers, neurons = spiking_layers(model), populations(model)
    assert set(layers) == {path for site in sites for path in site.layers}
    assert linear_layers(model) == set()
    assert set(neurons) == {site.path for site in sites}
    for site in sites:
        shared = neurons[site.path]
        assert shared.once.readers == len(site.layers) and shared.channels == site.channels
        assert all(layers[path].population is shared for path in site.layers)
        assert [hasattr(layers[path], "neuron") for path in site.layers] == [True] + [False] * len(site.also)


@pytest.mark.parametrize(("granularity", "shape"), [("channel", (32,)), ("tensor", ())])
def test_parameters_have_the_asked_granularity(granularity, shape):
    model, _ = attached(granularity=granularity)
    assert populations(model)["lm_head"].log_threshold.shape == shape


def test_weights_are_the_very_same_and_keep_their_names():
    model = FAMILIES["gpt2"].build()
    before = dict(model.named_parameters())
    sites = find_sites(model)
    attach(model, sites, Simulation(), signed)
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    # Tied weights stay tied.
    assert model.lm_head.weight is model.transformer.wte.weight
    added = set(after) - set(before)
    assert {name.rpartition(".")[2] for name in added} == {"log_threshold", "v_init", "offset", "correction"}


def test_detach_gives_the_same_modules_back():
    model = FAMILIES["opt"].build()
    before = dict(model.named_modules())
    sites = find_sites(model)
    attach(model, sites, Simulation(), signed)
    assert isinstance(model.get_submodule("model.decoder.layers.0.activation_fn"), nn.Identity)
    with torch.no_grad():
        model.get_submodule("model.decoder.layers.0.fc1").weight.add_(1)
    detach(model, sites)
    after = dict(model.named_modules())
    assert list(after) == list(before) and all(after[path] is module for path, module in before.items())


def test_detach_keeps_weights_that_were_exchanged_meanwhile():
    model, sites = attached()
    layer = model.get_submodule("transformer.h.0.mlp.c_fc")
    layer.weight = nn.Parameter(torch.full_like(layer.weight, 0.5))
    detach(model, sites)
    assert bool((model.get_submodule("transformer.h.0.mlp.c_fc").weight == 0.5).all())


def test_layers_keep_their_mode():
    model = FAMILIES["gpt2"].build().train()
    attach(model, find_sites(model), Simulation(), signed)
    assert all(layer.training for layer in spiking_layers(model).values())


def test_attaching_twice():
    model, sites = attached()
    with pytest.raises(
        SiteError, match=r"transformer\.h\.0\.attn\.c_attn is a SpikingLinear, not a dense linear layer"
    ):
        attach(model, sites, Simulation(), signed)


def test_a_module_that_is_not_linear():
    with pytest.raises(SiteError, match=r"transformer\.ln_f is a LayerNorm, not a dense linear layer"):
        attach(FAMILIES["gpt2"].build(), [Site("transformer.ln_f", "linear_input", 32)], Simulation(), signed)


def test_another_width():
    with pytest.raises(SiteError, match="lm_head reads 32 channels but the site has 31; the configuration belongs to"):
        attach(FAMILIES["gpt2"].build(), [Site("lm_head", "linear_input", 31)], Simulation(), signed)


@pytest.mark.parametrize(
    "site",
    [
        Site("transformer.h.7.mlp.c_fc", "mlp", 32),
        Site("lm_head", "mlp", 32, also=("transformer.h.7.mlp.c_fc",)),
        Site("lm_head", "mlp", 32, activation="transformer.h.7.mlp.c_fc"),
    ],
)
def test_a_module_that_the_model_does_not_have(site):
    message = r"GPT2LMHeadModel has no module transformer\.h\.7\.mlp\.c_fc; the configuration belongs to another"
    with pytest.raises(SiteError, match=message):
        attach(FAMILIES["gpt2"].build(), [site], Simulation(), signed)


@pytest.mark.parametrize(
    "sites",
    [
        [Site("transformer.h.0.mlp.c_fc", "mlp", 32), Site("lm_head", "linear_input", 31)],
        [Site("transformer.h.0.mlp.c_fc", "mlp", 32, also=("nowhere",))],
    ],
)
def test_a_failure_leaves_the_model_dense(sites):
    model = FAMILIES["gpt2"].build()
    with pytest.raises(SiteError, match="the configuration belongs to another model"):
        attach(model, sites, Simulation(), signed)
    assert not any(isinstance(module, SpikingLinear) for module in model.modules())


def test_thresholds_start_unset_on_the_device_of_the_weights():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 2))
    attach(model, [Site("0", "linear_input", 3)], Simulation(), signed)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    model, _ = attached()
    assert not any(population.is_set for population in populations(model).values())
