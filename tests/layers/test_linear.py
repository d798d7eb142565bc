"""The spiking linear layer: the dense one bit for bit as ANN, its weights behind spikes else."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fas.errors import NotCalibratedError
from fas.layers.linear import SpikingLinear
from fas.layers.population import Population
from fas.layers.simulation import Simulation
from fas.neurons.clipped_count import ClippedCount
from fas.neurons.phase import Phase
from fas.neurons.signed_if import SignedIF
from fas.neurons.soft_reset_if import SoftResetIF

CHANNELS, OUT = 7, 5
MODES = {
    "quantised": {"network": "quantised"},
    "collapsed": {"execution": "collapsed"},
    "stepped": {"execution": "stepped"},
    "online": {"schedule": "online"},
    "instant": {"schedule": "online", "operators": "instant"},
}
modes = pytest.mark.parametrize("settings", MODES.values(), ids=MODES)
kinds = pytest.mark.parametrize("kind", ["linear", "linear without bias", "conv1d"])


def dense(kind: str, out: int = OUT) -> nn.Module:
    layer = Conv1D(out, CHANNELS) if kind == "conv1d" else nn.Linear(CHANNELS, out, bias=kind == "linear")
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


def population(neuron=None, *, readers: int = 1, **settings) -> Population:
    made = Population("site", CHANNELS, neuron or SignedIF(), Simulation(timesteps=4, **settings), readers=readers)
    made.set(0.5 + 2 * torch.rand(CHANNELS), 0.1 * torch.randn(CHANNELS), torch.full((CHANNELS,), 0.5))
    return made


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("state", ["ann", "not yet reached"])
def test_the_dense_network_is_bit_equal(kind: str, dtype: torch.dtype, state: str):
    layer = dense(kind).to(dtype)
    x = torch.randn(3, 11, CHANNELS).to(dtype)
    expected = layer(x)
    neurons = population(network="ann" if state == "ann" else "snn")
    neurons.active = state == "ann"
    spiking = SpikingLinear(layer, neurons)
    # A correction of an earlier calibration is no part of the dense network.
    spiking.correction.data.normal_()
    assert torch.equal(spiking(x), expected)


def test_the_dense_network_keeps_the_activation_that_the_neurons_replace():
    layer, x = dense("linear"), torch.randn(3, CHANNELS)
    neurons = Population("a", CHANNELS, SoftResetIF(), Simulation(network="ann"), activation=nn.ReLU())
    assert torch.equal(SpikingLinear(layer, neurons)(x), layer(x.relu()))


@kinds
@pytest.mark.parametrize(
    ("neuron", "settings"),
    [
        pytest.param(neuron, settings, id=f"{type(neuron).__name__}-{mode}")
        for neuron in (SignedIF(), ClippedCount(), SoftResetIF(), Phase())
        for mode, settings in MODES.items()
        if not (isinstance(neuron, Phase) and "schedule" in settings)
    ],
)
def test_output_is_weight_times_mean_spikes_plus_both_biases(kind: str, neuron, settings):
    layer, neurons = dense(kind).double(), population(neuron, **settings).double()
    spiking = SpikingLinear(layer, neurons).double()
    spiking.correction.data.normal_()
    x = torch.randn(8, CHANNELS, dtype=torch.float64)
    with neurons.simulation.running(range(1, 5)):
        output, signal = spiking(x), neurons(x)
    signal = signal.mean(0) if signal.ndim > x.ndim else signal
    expected = torch.zeros(8, OUT, dtype=torch.float64)
    for i in range(8):
        for j in range(OUT):
            for c in range(CHANNELS):
                w = layer.weight[c, j] if kind == "conv1d" else layer.weight[j, c]
                expected[i, j] += (signal[i, c] * w).item()
            expected[i, j] += spiking.correction[j].item()
            expected[i, j] += layer.bias[j].item() if layer.bias is not None else 0.0
    # Seven products and two sums of size 1 in float64.
    torch.testing.assert_close(output.detach(), expected, rtol=1e-12, atol=1e-12)


@kinds
def test_parameters_are_those_of_the_dense_layer_under_their_names(kind: str):
    layer = dense(kind)
    spiking = SpikingLinear(layer, population())
    assert spiking.weight is layer.weight and spiking.bias is layer.bias
    assert (spiking.in_features, spiking.out_features) == (CHANNELS, OUT)
    names = {"weight", "correction", "neuron.log_threshold", "neuron.v_init", "neuron.offset"}
    assert set(spiking.state_dict()) == names | ({"bias"} if layer.bias is not None else set())
    assert not spiking.correction.any() and spiking.correction.shape == (OUT,)


@kinds
def test_the_dense_layer_comes_back_with_the_present_weights(kind: str):
    layer = dense(kind)
    spiking = SpikingLinear(layer, population(network="ann"))
    x = torch.randn(3, CHANNELS)
    spiking.weight = nn.Parameter(torch.randn_like(spiking.weight))
    assert spiking.dense() is layer
    assert layer.weight is spiking.weight
    assert torch.equal(spiking(x), layer(x))


def test_readers_of_one_site_share_neurons_and_parameters():
    neurons = population(SignedIF(), readers=3)
    layers = [SpikingLinear(dense("linear"), neurons, owner=i == 0) for i in range(3)]
    apart = []
    for layer in layers:
        single = population(SignedIF())
        single.load_state_dict(neurons.state_dict())
        apart.append(SpikingLinear(layer.dense(), single))
    x = torch.randn(4, CHANNELS)
    for shared, single in zip(layers, apart, strict=True):
        assert torch.equal(shared(x), single(x))
    model = nn.ModuleList(layers)
    assert [name for name in model.state_dict() if "log_threshold" in name] == ["0.neuron.log_threshold"]
    assert len([m for m in model.modules() if isinstance(m, Population)]) == 1


def test_gradients_reach_weights_and_thresholds():
    neurons = population(SignedIF(), schedule="online", readers=2)
    model = nn.ModuleList([SpikingLinear(dense("linear"), neurons, owner=i == 0) for i in range(2)])
    x = torch.randn(8, CHANNELS)
    with neurons.simulation.running(range(1, 5)):
        sum(layer(x).square().sum() for layer in model).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_a_copy_has_neurons_and_settings_of_its_own():
    neurons = population(SignedIF(), readers=2)
    model = nn.ModuleList([SpikingLinear(dense("linear"), neurons, owner=i == 0) for i in range(2)])
    other = copy.deepcopy(model)
    assert other[0].population is other[1].population is other[0].neuron
    assert other[0].population is not neurons
    assert other[0].population.simulation is not neurons.simulation
    assert other[0].dense().weight is other[0].weight
    other[0].population.simulation.timesteps = 9
    assert neurons.simulation.timesteps == 4


@modes
def test_bfloat16_model_keeps_float32_thresholds_and_returns_bfloat16(settings):
    neurons = population(SignedIF(), **settings)
    spiking = SpikingLinear(dense("linear").bfloat16(), neurons)
    with neurons.simulation.running(range(1, 5)):
        output = spiking(torch.randn(8, CHANNELS).bfloat16())
    assert output.dtype == torch.bfloat16
    assert {p.dtype for p in neurons.parameters()} == {torch.float32}
    assert spiking.correction.dtype == torch.float32


def test_without_thresholds_only_the_dense_network_runs():
    neurons = Population("block.mlp", CHANNELS, SignedIF(), Simulation(network="ann"))
    layer = SpikingLinear(dense("linear"), neurons)
    layer(torch.zeros(1, CHANNELS))
    neurons.simulation.network = "snn"
    with pytest.raises(NotCalibratedError, match=r"site block\.mlp has no thresholds yet"):
        layer(torch.zeros(1, CHANNELS))


def test_even_input_over_two_layers_is_the_quantised_network():
    """Layerwise with the rate code and even re-encoding equals the quantised network, whatever the depth."""
    simulation = Simulation(timesteps=6, levels=6)
    layers = nn.Sequential()
    for i in range(2):
        neurons = Population(f"{i}", CHANNELS, SignedIF(), simulation)
        neurons.set(0.5 + torch.rand(CHANNELS), torch.zeros(CHANNELS), torch.full((CHANNELS,), 0.5))
        layers.append(SpikingLinear(dense("linear", CHANNELS), neurons).double())
    x = torch.randn(20, CHANNELS, dtype=torch.float64)
    with simulation.using(network="quantised"):
        quantised = layers(x)
    # One arithmetic for both, collapsed; the mean over steps rounds differently.
    assert torch.equal(layers(x), quantised)
    with simulation.using(execution="stepped"):
        torch.testing.assert_close(layers(x), quantised, rtol=1e-12, atol=1e-12)


def test_printed_model_names_the_site():
    text = str(SpikingLinear(dense("linear"), population()))
    assert "in_features=7, out_features=5, site=site" in text and "SignedIF(signed=True)" in text
