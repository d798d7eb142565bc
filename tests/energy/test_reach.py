"""Fan-outs of convolutions against loops over outputs and kernels, and counts of whole networks against those."""

from __future__ import annotations

import itertools

import pytest
import tiny_cnns
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import Trains
from torch import nn
from torch.nn import functional

import fas
from fas.energy.count import count_operations
from fas.energy.estimate import count_both
from fas.layers.conv import convolution_fan_out


def fan_out_by_loops(layer: nn.Conv2d, height: int, width: int) -> torch.Tensor:
    """Count, for every input, the pairs of an output channel and a kernel entry that read it."""
    found = torch.zeros(height, width, layer.in_channels, dtype=torch.float64)
    padding = layer.padding if not isinstance(layer.padding, str) else (0, 0)
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip((height, width), padding, layer.dilation, layer.kernel_size, layer.stride, strict=True)
    ]
    share = layer.out_channels // layer.groups
    for row, column in itertools.product(range(sizes[0]), range(sizes[1])):
        for i, j in itertools.product(range(layer.kernel_size[0]), range(layer.kernel_size[1])):
            y = row * layer.stride[0] + i * layer.dilation[0] - padding[0]
            x = column * layer.stride[1] + j * layer.dilation[1] - padding[1]
            if 0 <= y < height and 0 <= x < width:
                found[y, x] += share
    return found


@given(
    size=st.tuples(st.integers(5, 8), st.integers(5, 8)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
)
def test_every_neuron_of_a_map(size, kernel, stride, padding, dilation, groups, bias):
    layer = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, bias)
    found = convolution_fan_out(layer, 4, *size)
    assert torch.equal(found, fan_out_by_loops(layer, *size))


def test_padding_by_name_and_of_other_kinds():
    same = convolution_fan_out(nn.Conv2d(2, 3, 3, padding="same"), 2, 5, 6)
    assert torch.equal(same, fan_out_by_loops(nn.Conv2d(2, 3, 3, padding=1), 5, 6))
    # Around the edge every input lies under nine entries again.
    around = convolution_fan_out(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), 2, 5, 6)
    assert torch.equal(around, torch.full((5, 6, 2), 27.0, dtype=torch.float64))


def test_a_subclass_with_a_forward_of_its_own():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean()
            return functional.conv2d(functional.pad(x, (1, 0, 1, 0)), weight, self.bias, self.stride)

    found = convolution_fan_out(Standardised(2, 3, 2), 2, 4, 4)
    inside = fan_out_by_loops(nn.Conv2d(2, 3, 2), 5, 5)[1:, 1:]
    assert torch.equal(found, inside)


@pytest.mark.parametrize("name", ["vgg", "resnet", "functional"])
@pytest.mark.parametrize("schedule", ["layerwise", "online"])
def test_sites_of_a_network_against_loops_over_recorded_spikes(name, schedule):
    steps, x = 3, tiny_cnns.images(2)
    method = fas.FAS(timesteps=steps, schedule=schedule, neuron="signed_if")
    model = fas.convert(tiny_cnns.build(name), method, probe={"x": x[:1]}, calibration=[{"x": x}])
    with torch.no_grad(), count_operations(model) as counts:
        model(x=x)
    trains = Trains()
    with torch.no_grad(), model.simulation.using(observers=[trains], execution="stepped"):
        model(x=x)
    assert counts.tokens == {"prefill": 2}
    found = counts.by_place()
    convolutions = 0
    for site in model.sites:
        (spikes,) = trains.calls[site.path]
        layers = [model.get_submodule(path).dense() for path in site.layers]
        if site.role == "conv_input":
            fan_out = sum(fan_out_by_loops(layer, *spikes.shape[2:4]) for layer in layers)
            kernels = sum(layer.weight[:, 0].numel() // layer.groups for layer in layers)
            convolutions += 1
        else:
            fan_out = torch.full(spikes.shape[1:], float(sum(layer.out_features for layer in layers)))[0]
            kernels = sum(layer.out_features for layer in layers)
        place = found[site.path]
        additions = sum(int((step != 0).double().mul(fan_out).sum()) for sample in spikes for step in sample)
        once = int((spikes.sum(0) > 0).double().mul(fan_out).sum())
        assert place.additions == place.weight_words == additions > 0
        assert place.weight_words_time == place.nonzero_multiply_adds == once
        assert place.dense_multiply_adds == 2 * int(fan_out.sum())
        assert place.windows == spikes[0].numel()
        assert place.weight_words_pass == kernels * int((spikes > 0).flatten(0, -2).any(0).sum())
    assert convolutions >= 2


def test_the_dense_network_multiplies_as_much_as_its_layers_do():
    x = tiny_cnns.images(2)
    model = fas.convert(tiny_cnns.build("vgg"), fas.FAS(timesteps=2), probe={"x": x[:1]}, calibration=[{"x": x}])
    spiking, dense = count_both(model, [{"x": x}])
    for site in model.sites:
        # One number from two sides: sums over spikes' maps, and over the inputs of a dense layer.
        assert dense.by_place()[site.path].dense_multiply_adds == spiking.by_place()[site.path].dense_multiply_adds
        assert dense.by_place()[site.path].nonzero_multiply_adds <= dense.by_place()[site.path].dense_multiply_adds
    # Behind ReLU many inputs are zero.
    total = dense.total()
    assert 0 < total.nonzero_multiply_adds < total.dense_multiply_adds
    assert total.spikes == total.additions == 0 and not dense.uncounted


def test_energy_of_a_convolutional_network_is_priced():
    x = tiny_cnns.images(2)
    model = fas.convert(tiny_cnns.build("resnet"), fas.FAS(timesteps=2), probe={"x": x[:1]}, calibration=[{"x": x}])
    found = fas.estimate_energy(model, [{"x": x}])
    assert found.energy("prefill", "compute", "snn") > 0 and found.ratio("prefill", "paper", "ann") > 0


def test_a_normalisation_of_a_batch_is_a_gain_and_a_shift():
    x = tiny_cnns.images(2)
    network = tiny_cnns.build("functional")
    model = fas.convert(network, fas.FAS(timesteps=2), probe={"x": x[:1]}, calibration=[{"x": x}])
    with torch.no_grad(), count_operations(model) as counts:
        model(x=x)
    norms = [p for p, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms, "a normalisation that reads a sum stays"
    for path in norms:
        assert (counts.by_place()[path].multiply_adds, counts.by_place()[path].roots) == (2 * 6 * 12 * 12, 0)
