"""Attention written out in several ways on spikes, against the attention function that is tested by loops."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from fas.errors import FASError
from fas.layers.attention import AttentionOperands, spiking_attention
from fas.layers.population import Population
from fas.layers.simulation import Simulation
from fas.layers.written_attention import SpikingProducts
from fas.neurons.clipped_count import ClippedCount
from fas.types import OPERANDS

B, HEADS, QUERIES, KEYS, WIDTH, VALUES = 2, 3, 4, 5, 6, 7
CHANNELS = {"query": HEADS * WIDTH, "key": HEADS * WIDTH, "value": HEADS * VALUES, "attention_weight": HEADS}
SCALE = 1 / math.sqrt(WIDTH)


def operands(simulation, roles=OPERANDS, **options):
    populations = {}
    for role in roles:
        neuron = ClippedCount(signed=role != "attention_weight")
        population = Population(role, CHANNELS[role], neuron, simulation).double()
        shape = population.log_threshold.shape
        population.set(0.6 + torch.rand(shape), 0.1 * torch.randn(shape) * neuron.signed, 0.3 + 0.4 * torch.rand(shape))
        populations[role] = population
    return AttentionOperands(populations, **options)


def factors():
    shapes = (B, HEADS, QUERIES, WIDTH), (B, HEADS, KEYS, WIDTH), (B, HEADS, KEYS, VALUES)
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def by_matmul(query, key, value, bias, drop=0.0):
    scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(WIDTH) + bias
    weights = functional.dropout(nn.Softmax(dim=-1)(scores), drop)
    return torch.matmul(weights, value), weights


def by_operator(query, key, value, bias, drop=0.0):
    weights = functional.dropout((query @ key.mT * SCALE + bias).softmax(-1), drop)
    return weights @ value, weights


def by_flat_matrices(query, key, value, bias, drop=0.0):
    """As BLOOM does: matrices of all rows and heads in one dimension, the bias a summand of the product."""
    query, key, value = (x.flatten(0, 1) for x in (query, key, value))
    bias = bias.expand(B, HEADS, QUERIES, KEYS).flatten(0, 1)
    scores = bias.baddbmm(batch1=query, batch2=key.mT, beta=1.0, alpha=SCALE).view(-1, HEADS, QUERIES, KEYS)
    weights = functional.dropout(functional.softmax(scores, dim=-1), drop)
    found = torch.bmm(weights.view(-1, QUERIES, KEYS), value)
    return found.view(-1, HEADS, QUERIES, VALUES), weights


WAYS = [by_matmul, by_operator, by_flat_matrices]


def spiking(made, way, *inputs, **named):
    with SpikingProducts(made) as products:
        found = way(*inputs, **named)
    products.check()
    return found


def hidden_bias():
    bias = torch.randn(B, 1, QUERIES, KEYS, dtype=torch.float64)
    bias[:, :, :, 2:4] = torch.finfo(bias.dtype).min
    return bias


@pytest.mark.parametrize("execution", ["collapsed", "stepped"])
@pytest.mark.parametrize("gates", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_it_is_the_attention_function(way, gates, execution):
    made = operands(Simulation(timesteps=5, execution=execution), softmax_gated=gates)
    xs, bias = factors(), hidden_bias()
    found, weights = spiking(made, way, *xs, bias)
    expected, shares = spiking_attention(made, *xs, scaling=SCALE, mask=bias)
    # Float64: a weight is multiplied by its share and divided by it again, and sums have another order.
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights, shares, rtol=1e-12, atol=1e-12)
    assert not bool(weights[..., 2:4].any())


@pytest.mark.parametrize("roles", [OPERANDS[:1], OPERANDS[1:2], OPERANDS[2:3], OPERANDS[3:]])
@pytest.mark.parametrize("way", WAYS)
def test_factors_may_stay_as_they_are(way, roles):
    made, xs = operands(Simulation(timesteps=4), roles), factors()
    bias = torch.zeros(1, 1, QUERIES, KEYS, dtype=torch.float64)
    expected, _ = spiking_attention(made, *xs, scaling=SCALE)
    # As above.
    torch.testing.assert_close(spiking(made, way, *xs, bias)[0], expected.transpose(1, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_the_dense_network_is_left_alone_and_shows_its_factors_to_calibration(way):
    made, xs = operands(Simulation(network="ann")), factors()
    bias = hidden_bias()
    assert torch.equal(spiking(made, way, *xs, bias)[0], way(*xs, bias)[0])
    seen = {}
    for role in OPERANDS:
        neuron = getattr(made, role).neuron
        neuron.register_forward_pre_hook(lambda _, given, role=role: seen.update({role: given[0]}))
    assert torch.equal(spiking(made, way, *xs, bias)[0], way(*xs, bias)[0])
    assert {role: x.shape[-1] for role, x in seen.items()} == CHANNELS
    assert torch.equal(seen["query"], xs[0].transpose(1, 2).flatten(2))
    # exp(s − max): one for the best key of every query, zero where nothing is to be seen.
    assert torch.equal(seen["attention_weight"].amax(2), torch.ones(B, QUERIES, HEADS, dtype=torch.float64))
    assert not bool(seen["attention_weight"][:, :, 2:4].any())


@pytest.mark.parametrize("way", WAYS)
def test_every_step_of_the_online_schedule_is_the_mean_so_far(way):
    simulation = Simulation(timesteps=4, schedule="online")
    made, xs = operands(simulation), factors()
    bias = torch.zeros(1, 1, QUERIES, KEYS, dtype=torch.float64)
    if way is by_flat_matrices:
        bias = bias.expand(4 * B, HEADS, -1, -1)
        way = flat_rows
    with simulation.running(range(1, 5)):
        found, _ = spiking(made, way, *(torch.cat([x] * 4) for x in xs), bias)
    with simulation.using(schedule="layerwise"):
        expected, _ = spiking_attention(made, *xs, scaling=SCALE)
    # Input even over time; a running mean times t, divided by t, rounds twice in float64.
    torch.testing.assert_close(found[-B:], expected.transpose(1, 2), rtol=1e-12, atol=1e-12)


def flat_rows(query, key, value, bias):
    query, key, value, bias = (x.flatten(0, 1) for x in (query, key, value, bias))
    scores = torch.baddbmm(bias, query, key.mT, alpha=SCALE).view(-1, HEADS, QUERIES, KEYS)
    weights = scores.softmax(-1)
    return (weights.flatten(0, 1) @ value).unflatten(0, (-1, HEADS)), weights


def test_steps_without_any_spike_give_zero_and_not_nan():
    simulation = Simulation(timesteps=2, schedule="online", operators="instant")
    made, xs = operands(simulation), [torch.cat([x, -x]) for x in factors()]
    made.attention_weight.neuron.set(torch.tensor(50.0), torch.tensor(0.0), torch.tensor(0.0))
    bias = torch.zeros(1, 1, QUERIES, KEYS, dtype=torch.float64)
    with simulation.running(range(1, 3)):
        found, _ = spiking(made, by_matmul, *xs, bias)
    assert not bool(found.any())


def test_dropout_takes_weights_away_and_leaves_the_sum_of_the_code():
    made, xs = operands(Simulation(timesteps=5)), factors()
    bias = torch.zeros(1, 1, QUERIES, KEYS, dtype=torch.float64)
    found, weights = spiking(made, by_matmul, *xs, bias, drop=0.5)
    values = made.encode("value", xs[2])
    # Whatever was dropped: the product of the weights that the module went on with.
    torch.testing.assert_close(found, weights @ values, rtol=1e-12, atol=1e-12)
    assert bool((weights == 0).any())


def test_gradients_reach_factors_and_parameters():
    made, xs = operands(Simulation(timesteps=5, network="quantised", levels=5)), [x.requires_grad_() for x in factors()]
    bias = torch.zeros(1, 1, QUERIES, KEYS, dtype=torch.float64)
    spiking(made, by_operator, *xs, bias)[0].square().sum().backward()
    assert all(bool(x.grad.any()) for x in xs)
    assert all(bool(parameter.grad.any()) for name, parameter in made.named_parameters() if "threshold" in name)


def test_products_with_parameters_and_softmax_of_other_things_are_left_alone():
    made, xs = operands(Simulation(timesteps=4)), factors()
    bias = torch.zeros(1, 1, QUERIES, KEYS, dtype=torch.float64)
    weight = nn.Parameter(torch.randn(1, 7, 7, dtype=torch.float64))

    def among_layers(*inputs):
        gate = torch.ones(3, dtype=torch.float64).softmax(0)
        found, weights = by_matmul(*inputs)
        return 3 * gate[0] * (found @ weight), weights

    expected, _ = spiking(made, by_matmul, *xs, bias)
    # One multiplication by 3 · 1/3.
    torch.testing.assert_close(spiking(made, among_layers, *xs, bias)[0], expected @ weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "way",
    [
        lambda q, k, v, b: functional.scaled_dot_product_attention(q, k, v),
        lambda q, k, v, b: q @ k.mT,
        lambda q, k, v, b: (q @ k.mT).softmax(-1),
    ],
)
def test_a_run_without_its_products_is_refused(way):
    with pytest.raises(FASError, match="traced as product, softmax and product ran differently"):
        spiking(operands(Simulation(timesteps=4)), way, *factors(), None)
