"""Spiking attention against plain loops over rows, heads and keys."""

import math

import pytest
import torch

from fas.layers.attention import AttentionOperands, attention_scores, exponentials, spiking_attention
from fas.layers.population import Population
from fas.layers.simulation import Simulation
from fas.neurons.clipped_count import ClippedCount
from fas.neurons.phase import Phase
from fas.types import OPERANDS

B, HEADS, SHARED, QUERIES, KEYS, WIDTH, VALUES = 2, 4, 2, 3, 5, 6, 7
CHANNELS = {"query": HEADS * WIDTH, "key": SHARED * WIDTH, "value": SHARED * VALUES, "attention_weight": HEADS}


def operands(simulation, roles=OPERANDS, neuron=ClippedCount, granularity="channel"):
    populations = {}
    for role in roles:
        made = neuron(signed=role != "attention_weight")
        population = Population(role, CHANNELS[role], made, simulation, granularity=granularity).double()
        shape = population.log_threshold.shape
        population.set(0.6 + torch.rand(shape), 0.1 * torch.randn(shape) * made.signed, 0.3 + 0.4 * torch.rand(shape))
        populations[role] = population
    return AttentionOperands(populations)


def factors():
    shapes = (B, HEADS, QUERIES, WIDTH), (B, SHARED, KEYS, WIDTH), (B, SHARED, KEYS, VALUES)
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def coded(made, role, channel, x, steps):
    """One number through one neuron, by the formula."""
    if not hasattr(made, role):
        return x
    population = getattr(made, role).neuron

    def of(parameter):
        return float((parameter[channel] if parameter.ndim else parameter).detach())

    theta, offset, start = of(population.threshold), of(population.offset), of(population.v_init)
    low, high = population.neuron.bounds(steps)
    count = max(low, min(high, math.floor((x - offset) * high / theta + start)))
    return count * theta / high + offset


def by_loops(made, query, key, value, steps, *, scaling, mask=None, causal=False, bias=None, softcap=None):
    output = torch.zeros(B, QUERIES, HEADS, VALUES, dtype=torch.float64)
    for b in range(B):
        for h in range(HEADS):
            g = h * SHARED // HEADS
            for i in range(QUERIES):
                scores = {}
                for j in range(KEYS):
                    if mask is not None and mask.dtype == torch.bool and not mask[b, 0, i, j]:
                        continue
                    if causal and j > i:
                        continue
                    score = scaling * sum(
                        coded(made, "query", h * WIDTH + d, float(query[b, h, i, d]), steps)
                        * coded(made, "key", g * WIDTH + d, float(key[b, g, j, d]), steps)
                        for d in range(WIDTH)
                    )
                    score = score if softcap is None else softcap * math.tanh(score / softcap)
                    score += 0.0 if bias is None else float(bias[0, h, i, j])
                    score += float(mask[b, 0, i, j]) if mask is not None and mask.dtype != torch.bool else 0.0
                    scores[j] = score
                top = max(scores.values())
                weights = {j: coded(made, "attention_weight", h, math.exp(s - top), steps) for j, s in scores.items()}
                for d in range(VALUES):
                    total = sum(
                        w * coded(made, "value", g * VALUES + d, float(value[b, g, j, d]), steps)
                        for j, w in weights.items()
                    )
                    output[b, i, h, d] = total / sum(weights.values())
    return output


def bool_mask():
    mask = torch.rand(B, 1, QUERIES, KEYS) < 0.6
    mask[..., 0] = True
    return mask


CASES = {
    "plain": dict,
    "bool mask": lambda: {"mask": bool_mask()},
    "summand mask": lambda: {"mask": torch.randn(B, 1, QUERIES, KEYS, dtype=torch.float64)},
    "causal": lambda: {"causal": True},
    "position bias": lambda: {"bias": torch.randn(1, HEADS, QUERIES, KEYS, dtype=torch.float64)},
    "softcap and mask": lambda: {"softcap": 0.7, "mask": bool_mask()},
}


@pytest.mark.parametrize("execution", ["collapsed", "stepped"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_loop(case, execution):
    how = CASES[case]()
    made, xs = operands(Simulation(timesteps=5, execution=execution)), factors()
    output, weights = spiking_attention(made, *xs, scaling=0.4, **how)
    # Float64: sums of a few dozen products of order one.
    torch.testing.assert_close(output, by_loops(made, *xs, 5, scaling=0.4, **how), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, HEADS, QUERIES, dtype=torch.float64))


@pytest.mark.parametrize("roles", [OPERANDS[:1], OPERANDS[1:2], OPERANDS[2:3], OPERANDS[3:]])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_factors_may_stay_as_they_are(roles, granularity):
    made, xs = operands(Simulation(timesteps=4), roles, Phase, granularity), factors()
    output, _ = spiking_attention(made, *xs, scaling=0.4)
    # As above.
    torch.testing.assert_close(output, by_loops(made, *xs, 4, scaling=0.4), rtol=1e-12, atol=1e-12)


def test_without_spikes_it_is_softmax_attention():
    made, (query, key, value) = operands(Simulation(network="ann")), factors()
    output, _ = spiking_attention(made, query, key, value, scaling=0.4, causal=True)
    key, value = (x.repeat_interleave(2, dim=1) for x in (key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=0.4, is_causal=True)
    # Two orders of summation in float64.
    torch.testing.assert_close(output.transpose(1, 2), expected, rtol=1e-12, atol=1e-12)


def test_every_step_of_the_online_schedule_is_the_mean_so_far():
    simulation = Simulation(timesteps=4, schedule="online")
    made, (query, key, value) = operands(simulation), factors()
    folded = [torch.cat([x] * 4) for x in (query, key, value)]
    with simulation.running(range(1, 5)):
        output, _ = spiking_attention(made, *folded, scaling=0.4)
    with simulation.using(schedule="layerwise"):
        expected, _ = spiking_attention(made, query, key, value, scaling=0.4)
    # Input even over time; a running mean times t, divided by t, rounds twice in float64.
    torch.testing.assert_close(output[-B:], expected, rtol=1e-12, atol=1e-12)


def test_steps_without_any_spike_give_zero_and_not_nan():
    simulation = Simulation(timesteps=2, schedule="online", operators="instant")
    made, xs = operands(simulation), [torch.cat([x, -x]) for x in factors()]
    made.attention_weight.neuron.set(torch.tensor(50.0), torch.tensor(0.0), torch.tensor(0.0))
    with simulation.running(range(1, 3)):
        output, _ = spiking_attention(made, *xs, scaling=0.4)
    assert not bool(output.any())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("by_gates", [False, True])
def test_hidden_weights_are_zero_and_others_are_not(dtype, by_gates):
    scores = torch.tensor([[0.0, -300.0, 0.0, -1e4], [1.0, 2.0, 3.0, 4.0]], dtype=dtype)
    least = torch.finfo(dtype).min
    for hide in (lambda x, m: x.masked_fill(m, least), lambda x, m: x + torch.zeros_like(x).masked_fill(m, -torch.inf)):
        mask = torch.tensor([[False, False, True, False], [True, True, True, True]])
        found = exponentials(hide(scores, mask), gates=Simulation() if by_gates else None)
        assert torch.equal(found > 0, ~mask) and found[0, 0] == pytest.approx(1, abs=2e-6)


def test_a_query_that_sees_nothing_gets_nothing():
    made, xs = operands(Simulation(timesteps=4)), factors()
    mask = torch.ones(B, 1, QUERIES, KEYS, dtype=torch.bool)
    mask[0, 0, 1] = False
    output, _ = spiking_attention(made, *xs, scaling=0.4, mask=mask)
    assert not bool(output[0, 1].any()) and bool(output.isfinite().all())


def test_dropout_leaves_the_sum_of_the_code():
    made, xs = operands(Simulation(timesteps=5)), factors()
    plain, weights = spiking_attention(made, *xs, scaling=0.4)
    dropped = [spiking_attention(made, *xs, scaling=0.4, dropout=0.5) for _ in range(300)]
    assert all(torch.equal(one[1], weights) for one in dropped)
    mean = torch.stack([one[0] for one in dropped]).mean(0)
    # Mean of 300: a standard error of 1/17 of a spread of at most about 1.5, largest of 168.
    torch.testing.assert_close(mean, plain, rtol=0, atol=0.4)


def test_half_precision_scores_are_exponentiated_in_float32():
    query, key, _ = factors()
    scores = attention_scores(query.bfloat16(), key.bfloat16(), scaling=0.4)
    assert exponentials(scores).dtype == torch.float32
    assert torch.equal(exponentials(scores).amax(-1), torch.ones(B, HEADS, QUERIES))


def test_gradients_reach_factors_and_parameters():
    made, xs = operands(Simulation(timesteps=5, network="quantised", levels=5)), [x.requires_grad_() for x in factors()]
    spiking_attention(made, *xs, scaling=0.4)[0].square().sum().backward()
    assert all(bool(x.grad.any()) for x in xs)
    assert all(bool(parameter.grad.any()) for name, parameter in made.named_parameters() if "threshold" in name)


def test_training_cannot_move_what_a_hidden_key_says():
    """Were μ of the weights learned, a hidden key would be coded as μ, and the future would reach the past."""
    made = operands(Simulation(network="quantised", timesteps=4, levels=4))
    parameters = dict(made.named_parameters())
    assert "attention_weight.neuron.offset" not in parameters
    assert "attention_weight.neuron.offset" in made.state_dict()
    query, key, value = factors()
    optimiser = torch.optim.SGD(parameters.values(), lr=0.1)
    for _ in range(2):
        output, _ = spiking_attention(made, query, key, value, scaling=0.5, causal=True)
        optimiser.zero_grad()
        output.square().sum().backward()
        optimiser.step()
    before, _ = spiking_attention(made, query, key, value, scaling=0.5, causal=True)
    later = value.clone()
    later[:, :, 1:] += 1
    after, _ = spiking_attention(made, query, key, later, scaling=0.5, causal=True)
    assert torch.equal(after[:, 0], before[:, 0])
    assert not torch.equal(after[:, 1], before[:, 1])
