"""The spiking linear layer: the dense one bit for bit as ANN, its weights behind spikes else."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fas.errors import FASError, NotCalibratedError
from fas.kernels import cpu
from fas.layers.linear import SpikingLinear
from fas.layers.population import Population
from fas.layers.simulation import Simulation
from fas.neurons.clipped_count import ClippedCount
from fas.neurons.phase import Phase
from fas.neurons.signed_if import SignedIF
from fas.neurons.soft_reset_if import SoftResetIF

CHANNELS, OUT = 7, 5
able, _ = cpu.supports("spike_linear", torch.device("cpu"), torch.float32)
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


def test_a_model_turned_to_half_precision_keeps_its_thresholds():
    neurons = population(SignedIF())
    before = {name: parameter.clone() for name, parameter in neurons.named_parameters()}
    SpikingLinear(dense("linear"), neurons).half()
    for name, parameter in neurons.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert neurons.double().offset.dtype == torch.float64


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


# Inference with the fast kernels ------------------------------------------------------------------------


def layers(kind: str, neuron=None, **settings) -> tuple[SpikingLinear, Population]:
    neurons = population(neuron, **settings)
    spiking = SpikingLinear(dense(kind), neurons)
    spiking.correction.data.normal_()
    return spiking, neurons


def by_definition(spiking: SpikingLinear, x: torch.Tensor) -> torch.Tensor:
    """W · (N unit + μ) + b + δ in float64, with the counts of float32."""
    neurons = spiking.population
    steps = neurons.simulation.timesteps
    theta, v, mu = (p.detach() for p in (neurons.threshold, neurons.v_init, neurons.offset))
    resolution = neurons.neuron.resolution(steps)
    counts = ((x - mu) * (resolution / theta) + v).floor().clamp(*neurons.neuron.bounds(steps)).double()
    weight = (spiking.weight.T if spiking.transposed else spiking.weight).detach().double()
    bias = spiking.correction.detach().double() + (0 if spiking.bias is None else spiking.bias.detach().double())
    return (counts * theta.double() / resolution + mu.double()) @ weight.T + bias


@kinds
@pytest.mark.parametrize("kernels", ["auto", "torch", "naive"])
@pytest.mark.parametrize("execution", ["collapsed", "stepped"])
@pytest.mark.parametrize("neuron", [SignedIF(), ClippedCount(), SoftResetIF(), Phase()])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 2), (3, 3), (0,)])
def test_inference_is_the_definition(kind, kernels, execution, neuron, shape):
    spiking, _ = layers(kind, neuron, kernels=kernels, execution=execution)
    x = 2 * torch.randn(*shape, CHANNELS)
    with torch.no_grad():
        output = spiking(x)
    assert output.shape == (*shape, OUT) and output.dtype == torch.float32
    # A sum of seven products of size 1 to 10 in float32.
    torch.testing.assert_close(output.double(), by_definition(spiking, x), rtol=1e-5, atol=1e-5)


@kinds
@pytest.mark.parametrize("neuron", [SignedIF(), SoftResetIF()])
@pytest.mark.parametrize("operators", ["difference", "instant"])
@pytest.mark.parametrize("readers", [1, 2])
def test_many_rows_online_are_a_product_of_spikes(kind, neuron, operators, readers, monkeypatch):
    neurons = population(neuron, readers=readers, schedule="online", operators=operators)
    # One reader is transposed or not as another may be.
    spiking = [SpikingLinear(dense(kind), neurons) for _ in range(readers)]
    called = []
    for op in ("spikes", "spike_linear"):
        original = getattr(cpu, op)
        monkeypatch.setattr(
            cpu, op, lambda *a, op=op, original=original, **k: (called.append(op), original(*a, **k))[1]
        )
    x = 2 * torch.randn(4 * 8, 5, CHANNELS)
    with torch.no_grad(), neurons.simulation.running(range(1, 5)):
        answers = [layer(x) for layer in spiking]
        neurons.simulation.kernels = "torch"
        by_torch = [layer(x) for layer in spiking]
    if able:
        assert called == ["spikes", *["spike_linear"] * readers]
    for ours, theirs in zip(answers, by_torch, strict=True):
        # Sums of seven products of size 1 to 10 in float32; a threshold is compared with the same numbers in both.
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"neuron": ClippedCount()}, "graded spikes are more than one"),
        ({"rows": 1}, "too few rows"),
        ({"carry": True}, "the window began earlier"),
        ({"grad": True}, "gradients"),
        ({"dtype": torch.float64}, "another dtype"),
    ],
)
def test_other_runs_online_are_a_product_of_values(change, reason, monkeypatch):
    neurons = population(change.get("neuron"), schedule="online")
    dtype = change.get("dtype", torch.float32)
    spiking = SpikingLinear(dense("linear").to(dtype), neurons)
    monkeypatch.setattr(SpikingLinear, "_on_spikes", lambda *_: pytest.fail(reason))
    x = torch.randn(4 * change.get("rows", 50), CHANNELS, dtype=dtype)
    with torch.set_grad_enabled(change.get("grad", False)):
        with neurons.simulation.running(range(1, 5), carry=change.get("carry", False)):
            assert spiking(x).shape == (len(x), OUT)


def test_observers_see_the_spikes_of_a_product_of_spikes():
    class Kept:
        def observe(self, path, spikes, timesteps):
            self.spikes = spikes

    neurons = population(schedule="online", operators="instant")
    spiking, kept = SpikingLinear(dense("linear"), neurons), Kept()
    x = 2 * torch.randn(4 * 40, CHANNELS)
    with torch.no_grad(), neurons.simulation.running(range(1, 5)):
        values = neurons(x)
        neurons.simulation.observers.append(kept)
        spiking(x)
    sent = ((values - neurons.offset) / neurons.threshold).round().abs().view(4, 40, CHANNELS)
    assert sent.any() and torch.equal(kept.spikes.float(), sent)


@kinds
def test_a_row_of_few_spikes_reads_only_their_weights(kind: str):
    spiking, neurons = layers(kind)
    x = neurons.offset.detach().clone()[None]
    x[0, 3] += 1e3
    with torch.no_grad():
        expected = by_definition(spiking, x)
        # A change through ``data`` is not seen by the version, so what was folded stands.
        spiking(x)
        spiking.weight.data[(0,) if spiking.transposed else (slice(None), 0)] = float("nan")
        output = spiking(x)
    if spiking.transposed:
        torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
        spiking.reset()
        with torch.no_grad():
            assert spiking(x).isnan().all()
    else:
        assert output.isnan().all()


@kinds
@pytest.mark.parametrize("weights", ["float", "int8"])
@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.weight.mul_(-2),
        lambda layer: setattr(layer, "weight", nn.Parameter(torch.randn_like(layer.weight))),
        lambda layer: layer.correction.data.add_(1),
        lambda layer: layer.population.log_threshold.data.add_(0.5),
        lambda layer: layer.population.offset.data.add_(0.5),
        lambda layer: layer.population.v_init.data.mul_(0.1),
        lambda layer: layer.population.set(torch.tensor(1.3), torch.tensor(0.2), torch.tensor(0.1)),
        lambda layer: setattr(layer.population.simulation, "timesteps", 9),
    ],
)
def test_nothing_that_was_worked_out_outlives_a_change(kind, weights, rows, change):
    spiking, _ = layers(kind, weights=weights)
    x = torch.randn(rows, CHANNELS)
    with torch.no_grad():
        before = spiking(x)
        change(spiking)
        after = spiking(x)
        fresh = copy.deepcopy(spiking)
        fresh.reset()
        fresh.population.reset()
        assert torch.equal(after, fresh(x))
        # Rounding in float32, or of weights to 8 bits (see below).
        close = 1e-5 if weights == "float" else 0.1
        torch.testing.assert_close(after.double(), by_definition(spiking, x), rtol=close, atol=close)
    assert not torch.equal(before, after)


@kinds
@pytest.mark.parametrize("kernels", ["auto", "torch", "naive"])
@pytest.mark.parametrize("neuron", [SignedIF(), ClippedCount(), SoftResetIF(), Phase()])
@pytest.mark.parametrize("execution", ["collapsed", "stepped"])
@pytest.mark.parametrize("shape", [(1,), (2, 3), (0,)])
def test_eight_bit_weights_are_off_by_half_a_step_at_most(kind, kernels, neuron, execution, shape):
    spiking, neurons = layers(kind, neuron, kernels=kernels, execution=execution, weights="int8")
    x = 2 * torch.randn(*shape, CHANNELS)
    with torch.no_grad():
        output = spiking(x)
    with neurons.simulation.using(weights="float"):
        exact = by_definition(spiking, x)
    scale = spiking.integers().scale.double()
    unit = (neurons.threshold / neurons.neuron.resolution(4)).detach().double()
    counts = (
        ((neurons(x).detach() - neurons.offset.detach()).double() / unit).round() if execution == "collapsed" else None
    )
    if counts is not None:
        # |W unit − q scale| ≤ scale / 2, once for every spike; 1e-5 for float32.
        bound = counts.abs().sum(-1, keepdim=True) * scale / 2 + 1e-5 * (1 + exact.abs())
        assert bool(((output - exact).abs() <= bound).all())
    assert output.shape == (*shape, OUT)
    with torch.no_grad(), neurons.simulation.using(kernels="naive", execution="collapsed"):
        torch.testing.assert_close(output, spiking(x), rtol=1e-5, atol=1e-5)


@kinds
def test_the_error_of_eight_bits_is_that_of_the_folded_weight(kind: str):
    spiking, neurons = layers(kind)
    integers = spiking.integers()
    weight = (spiking.weight.T if spiking.transposed else spiking.weight).detach().double()
    folded = weight * (neurons.threshold / 4).detach().double()
    assert integers.values.dtype == torch.int8
    assert (integers.values.abs().amax(1) == 127).all()
    wrong = (integers.values.double() * integers.scale.double().unsqueeze(1) - folded).norm() / folded.norm()
    assert integers.error == pytest.approx(float(wrong), rel=1e-4)  # norms in float32
    # Errors uniform in ±1/2 steps of 1/127 of the largest weight.
    assert 0 < integers.error < 0.5 / 127 * 7**0.5


def test_a_layer_of_zeros_has_eight_bits_too():
    spiking, _ = layers("linear", weights="int8")
    nn.init.zeros_(spiking.weight)
    with torch.no_grad():
        output = spiking(torch.randn(2, CHANNELS))
    assert spiking.integers().error == 0
    torch.testing.assert_close(output, (spiking.bias + spiking.correction).detach().expand(2, -1))


@pytest.mark.parametrize(
    ("settings", "message"), [({"schedule": "online"}, "the model is online"), ({}, "the model has gradients")]
)
def test_eight_bits_have_no_gradient_and_no_online_schedule(settings, message):
    spiking, neurons = layers("linear", weights="int8", **settings)
    with neurons.simulation.running(range(1, 5)), pytest.raises(FASError, match=f"weights='int8'.*{message}"):
        spiking(torch.randn(4, CHANNELS))


def test_counts_beyond_sixteen_bits_are_refused():
    spiking, neurons = layers("linear", Phase(), weights="int8")
    neurons.simulation.timesteps = 16
    with (
        torch.no_grad(),
        pytest.raises(FASError, match="counts of Phase at T = 16 exceed 32767, or are not whole numbers"),
    ):
        spiking(torch.randn(4, CHANNELS))
    neurons.simulation.weights = "float"
    x = torch.randn(1, CHANNELS)
    with torch.no_grad():
        torch.testing.assert_close(spiking(x).double(), by_definition(spiking, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_with_eight_bits(dtype, rows):
    spiking, neurons = layers("linear", weights="int8")
    x = torch.randn(rows, CHANNELS).to(dtype)
    with torch.no_grad():
        expected = spiking(x.float())
        other = SpikingLinear(spiking.dense().to(dtype), neurons)
        other.correction.data.copy_(spiking.correction)
        output = other(x)
    assert output.dtype == dtype
    # Weights and answer in bfloat16 have 8 bits; counts of 4 steps are the same.
    close = 0.1 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(output.float(), expected, rtol=close, atol=close)


def _half(layer, x):
    return layer.bfloat16(), x.bfloat16()


def _of(name, change):
    def applied(layer, x):
        change(dict(layer.named_parameters(), **dict(layer.population.named_parameters()))[name].data)
        return layer, x

    return applied


def _set(name, value):
    def applied(layer, x):
        setattr(layer.population.simulation, name, value)
        return layer, x

    return applied


CHANGES = {
    **{name: _of(name, lambda data: data.add_(0.7)) for name in ("log_threshold", "offset", "correction", "weight")},
    "v_init": _of("v_init", lambda data: data.mul_(0.1)),
    "timesteps": _set("timesteps", 7),
    "ann": _set("network", "ann"),
    "quantised": _set("network", "quantised"),
    "stepped": _set("execution", "stepped"),
    "int8": _set("weights", "int8"),
    "torch": _set("kernels", "torch"),
    "half": _half,
    "another width of batch": lambda layer, x: (layer, x.repeat(2, 6, 1)),
    "a strided input": lambda layer, x: (layer, x.repeat(1, 1, 2)[..., ::2]),
    "a copy": lambda layer, x: _of("offset", lambda data: data.add_(0.7))(copy.deepcopy(layer), x),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_call_behind_others_sees_every_change(change):
    layer = SpikingLinear(dense("linear"), population())
    x = torch.randn(1, 1, CHANNELS)
    with torch.no_grad():
        before = [layer(x.clone()) for _ in range(3)]
        assert torch.equal(before[0], before[2])
        kept = copy.deepcopy(layer)
        layer, changed = change(layer, x)
        got = layer(changed)
        fresh = copy.deepcopy(layer)
        fresh.population.reset()
        fresh.reset()
        fresh._settings = None
        assert torch.equal(got, fresh(changed))
        assert torch.equal(kept(x), before[0])


def test_a_call_behind_others_is_observed_and_has_gradients():
    layer = SpikingLinear(dense("linear"), population())
    seen, x = [], torch.randn(1, 1, CHANNELS)
    with torch.no_grad():
        expected = layer(x)
        assert torch.equal(layer(x), expected)

        class Seen:
            def observe(self, path, spikes, timesteps):
                seen.append(path)

        with layer.population.simulation.using(observers=[Seen()]):
            assert torch.equal(layer(x), expected) and seen == ["site"]
        handle = layer.population.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
        assert torch.equal(layer(x).flatten(), layer.bias + layer.correction)
        handle.remove()
    layer(x).sum().backward()
    assert layer.weight.grad is not None and layer.population.log_threshold.grad is not None
