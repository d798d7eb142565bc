"""A convolution behind neurons: against plain arithmetic, and what commutes with its code."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fas.errors import FASError
from fas.layers.conv import SpikingConv2d
from fas.layers.linear import SpikingLinear
from fas.layers.once import Once
from fas.layers.population import Population
from fas.layers.simulation import Simulation
from fas.neurons.clipped_count import ClippedCount
from fas.neurons.signed_if import SignedIF
from fas.neurons.soft_reset_if import SoftResetIF

C = 5


def neurons(neuron=None, channels=C, *, offset=True, **settings) -> Population:
    population = Population("conv", channels, neuron or SignedIF(), Simulation(timesteps=4, levels=4, **settings))
    generator = torch.Generator().manual_seed(5)
    threshold = torch.rand(channels, generator=generator) + 0.5
    shift = torch.randn(channels, generator=generator) * 0.1 if offset else torch.zeros(channels)
    population.set(threshold, shift, torch.rand(channels, generator=generator) * 0.9)
    return population


def by_definition(x, population, timesteps):
    """Encode [*B, C, H, W] with one threshold per channel: N = clip(⌊(x − μ)T/θ + v_0⌋), sent as Nθ/T + μ."""
    theta, mu, start = (p.detach().view(-1, 1, 1) for p in (population.threshold, population.offset, population.v_init))
    low, high = population.neuron.bounds(timesteps)
    return ((x - mu) * timesteps / theta + start).floor().clamp(low, high) * theta / timesteps + mu


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"dilation": 2, "padding": (1, 2), "bias": False},
        {"groups": 5, "padding": 1},
        {"padding": "same", "padding_mode": "circular"},
    ],
)
@pytest.mark.parametrize("execution", ["collapsed", "stepped"])
@pytest.mark.parametrize("neuron", [SignedIF(), SignedIF(signed=False), SoftResetIF(), ClippedCount()])
def test_it_is_the_dense_layer_on_what_the_spikes_carry(options, execution, neuron):
    dense = nn.Conv2d(C, 10, 3, **options).double()
    population = neurons(neuron, execution=execution)
    layer = SpikingConv2d(copy.deepcopy(dense), population).double()
    with torch.no_grad():
        layer.correction.uniform_(-1, 1)
        for x in (torch.randn(2, C, 7, 6).double(), torch.randn(C, 7, 7).double(), torch.randn(0, C, 7, 7).double()):
            want = dense(by_definition(x, population, 4)) + layer.correction.view(-1, 1, 1)
            # Sums of up to 45 products in another order.
            torch.testing.assert_close(layer(x), want, rtol=0, atol=1e-12)


def test_the_quantised_network_is_the_same_at_equal_levels():
    layer = SpikingConv2d(nn.Conv2d(C, 4, 3), population := neurons())
    x = torch.randn(2, C, 6, 6)
    spiking = layer(x)
    population.simulation.network = "quantised"
    torch.testing.assert_close(layer(x), spiking, rtol=0, atol=1e-6)  # float32 sums of 45 products


def test_the_dense_network_is_bit_equal_and_applies_the_activation_of_the_site():
    dense = nn.Conv2d(C, 4, 3, padding=1)
    x = torch.randn(2, C, 6, 6)
    population = Population("conv", C, SoftResetIF(), Simulation(network="ann"), activation=nn.ReLU())
    layer = SpikingConv2d(dense, population)
    assert torch.equal(layer(x), dense(x.relu()))
    assert layer.weight is dense.weight and layer.bias is dense.bias and layer.dense() is dense


def test_a_one_by_one_convolution_is_a_linear_layer_at_every_position():
    conv, population = nn.Conv2d(C, 4, 1), neurons()
    linear = nn.Linear(C, 4)
    linear.weight.data, linear.bias.data = conv.weight.data.view(4, C), conv.bias.data
    x = torch.randn(2, C, 3, 4)
    want = SpikingLinear(linear, population)(x.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(SpikingConv2d(conv, population)(x), want, rtol=0, atol=1e-6)  # order of 5 products


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 2}, {"groups": 5, "dilation": 2, "padding": 1}])
def test_a_mean_error_becomes_the_sum_of_the_kernel(options):
    dense = nn.Conv2d(C, 10, 3, **options)
    layer, shift = SpikingConv2d(dense, neurons()), torch.randn(C)
    layer.push_error(shift)
    weight = dense.weight.detach()
    per_group, outs = weight.shape[1], 10 // dense.groups
    want = [
        sum(
            float(weight[o, c].sum()) * float(shift[(o // outs) * per_group + c])
            for c in range(per_group)
        )
        for o in range(10)
    ]  # fmt: skip
    torch.testing.assert_close(layer.correction.data, torch.tensor(want), rtol=0, atol=1e-5)  # float32, 45 products


def test_layers_of_one_site_encode_once():
    population = neurons()
    population.once = Once(2)
    view = Once(2)
    first, second = nn.Conv2d(C, 4, 3, padding=1), nn.Conv2d(C, 3, 1)
    layers = [SpikingConv2d(first, population, view), SpikingConv2d(second, population, view, owner=False)]
    shown = []
    population.simulation.observers = [type("O", (), {"observe": lambda self, *what: shown.append(what)})()]
    x = torch.randn(2, C, 6, 6)
    outputs = [layer(x) for layer in layers]
    assert len(shown) == 1 and shown[0][1].shape == (1, 2, 6, 6, C)
    population.once, population.simulation.observers = Once(), []
    for dense, output in zip((first, second), outputs, strict=True):
        assert torch.equal(SpikingConv2d(dense, population)(x), output)
    assert view._latest == {}


@given(
    st.integers(1, 6), st.sampled_from([SignedIF(), SoftResetIF(), ClippedCount(), ClippedCount(signed=False)]),
    st.sampled_from([(2, 2, 0), (3, 2, 1), (3, 1, 1)]), st.integers(0, 10**6),
)  # fmt: skip
def test_maxima_commute_with_the_code(timesteps, neuron, window, seed):
    # One threshold per channel makes counts a monotone function of the activation, and a maximum of counts the
    # count of the maximum: exact, to the last count.
    generator = torch.Generator().manual_seed(seed)
    population = neurons(neuron)
    population.simulation.timesteps = timesteps
    # Multiples of 1/8 hit the thresholds of some levels exactly.
    x = torch.randint(-16, 17, (2, 7, 7, C), generator=generator) / 8
    size, stride, padding = window
    pooled = functional.max_pool2d(x.movedim(-1, 1), size, stride, padding).movedim(1, -1)
    with torch.no_grad():
        counts, after = (population(seen, "counts")[0].float().movedim(-1, 1) for seen in (x, pooled))
    assert torch.equal(functional.max_pool2d(counts, size, stride, padding), after)


def test_gradients_reach_weights_thresholds_and_the_input():
    layer, x = SpikingConv2d(nn.Conv2d(C, 4, 3), neurons(SoftResetIF())), torch.rand(2, C, 5, 5, requires_grad=True)
    layer(x).square().sum().backward()
    for parameter in (layer.weight, layer.bias, layer.correction, layer.neuron.log_threshold, x):
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()) and bool(parameter.grad.any())


def test_eight_bit_weights_are_refused():
    layer = SpikingConv2d(nn.Conv2d(C, 4, 3), neurons(weights="int8"))
    with pytest.raises(FASError, match=r"weights='int8'.*conv is a convolution: set model\.weights = 'float'"):
        layer(torch.randn(1, C, 5, 5))


def test_it_shows_what_it_is():
    assert "5, 4, site=conv" in repr(SpikingConv2d(nn.Conv2d(C, 4, 3), neurons()))
