"""Populations: every execution and schedule gives the counts of a loop over the neuron's definition."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import generator
from neuron_variants import codes, every, label, rate

from fas.errors import CalibrationError, FASError, NotCalibratedError
from fas.kernels import torch_
from fas.layers.adapting_population import AdaptingPopulation
from fas.layers.population import Population
from fas.layers.simulation import Simulation
from fas.neurons.adaptive_digit import AdaptiveDigit
from fas.neurons.clipped_count import ClippedCount
from fas.neurons.phase import Phase
from fas.neurons.signed_if import SignedIF
from fas.neurons.soft_reset_if import SoftResetIF
from fas.types import Neuron, RateNeuron

# Float64 rounding of a few operations on numbers of size 1 to 10.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}

seeds = st.integers(0, 2**32 - 1)
timesteps = st.integers(1, 9)
# Each example holds many neurons, so a quarter of the examples is still thousands of cases.
few = settings(max_examples=settings.default.max_examples // 4)


class Seen:
    """An observer that keeps everything."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, torch.Tensor, int]] = []

    def observe(self, path: str, spikes: torch.Tensor, timesteps: int) -> None:
        self.calls.append((path, spikes, timesteps))


def build(
    neuron: Neuron, seed: int = 0, channels: int = 7, *, granularity="channel", readers: int = 1, **settings
) -> Population:
    """A float64 population with random parameters. Counts then never hang on the order of operations.

    A tie needs an input within 1e-14 of a decision level; of the 1e6 drawn here none comes near.
    """
    kind = AdaptingPopulation if neuron.adapts else Population
    population = kind(
        "block.mlp", channels, neuron, Simulation(**settings), granularity=granularity, readers=readers
    ).double()
    rng, shape = generator(seed), population.log_threshold.shape
    threshold, v_init, offset = (torch.rand(shape, generator=rng, dtype=torch.float64) for _ in range(3))
    # Behind a code without sign the offset stays zero in practice, but nothing depends on it.
    population.set(0.3 + 2 * threshold, offset - 0.5, v_init)
    return population


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed + 1), dtype=torch.float64)


def unit(population: Population) -> torch.Tensor:
    """What one level is worth."""
    return (population.threshold / population.neuron.resolution(population.simulation.timesteps)).detach()


def counts_of(mean: torch.Tensor, population: Population) -> torch.Tensor:
    counts = (mean - population.offset.detach()) / unit(population)
    assert (counts - counts.round()).abs().max() < 1e-9  # a whole number, to float64 rounding
    return counts.round()


def closed_form(x: torch.Tensor, population: Population) -> list[list[int]]:
    """The counts for even input, scalar by scalar."""
    steps, neuron = population.simulation.timesteps, population.neuron
    lower, upper = neuron.bounds(steps)
    columns = [
        p.detach().expand(x.shape[-1]).tolist() for p in (unit(population), population.offset, population.v_init)
    ]
    return [
        [max(lower, min(upper, math.floor((v - m) / u + s))) for v, u, m, s in zip(row, *columns, strict=True)]
        for row in x.tolist()
    ]


def loop(currents: torch.Tensor, population: Population) -> torch.Tensor:
    """Counts [T, *B, C] by the definition of the neuron with a membrane potential."""
    neuron, theta = population.neuron, population.threshold.detach()
    assert isinstance(neuron, RateNeuron)
    potential = (population.v_init.detach() * theta).expand(currents[0].shape)
    count, counts = torch.zeros_like(currents[0]), []
    for x in currents:
        spikes, potential = neuron.step(
            x - population.offset.detach(), potential, count, theta, population.simulation.timesteps
        )
        count = count + spikes
        counts.append(count)
    return torch.stack(counts)


def online(population: Population, rows: torch.Tensor, steps: range, *, carry: bool = False) -> torch.Tensor:
    """Run rows [n, *B, C] of the given steps as the model does: time-major in the batch."""
    with population.simulation.running(steps, carry=carry):
        return population(rows.flatten(0, 1)).detach().unflatten(0, (len(steps), -1))


def running_means(currents: torch.Tensor) -> torch.Tensor:
    clock = torch.arange(1, len(currents) + 1, dtype=currents.dtype).view(-1, *[1] * (currents.ndim - 1))
    return currents.cumsum(0) / clock


# Layerwise ---------------------------------------------------------------------------------------------


@every
@few
@given(
    seed=seeds,
    steps=timesteps,
    channels=st.sampled_from([1, 7, 64]),
    granularity=st.sampled_from(["channel", "tensor"]),
)
def test_collapsed_and_stepped_end_at_the_closed_form(neuron, seed, steps, channels, granularity):
    population = build(neuron, seed, channels, granularity=granularity, timesteps=steps)
    x = 2 * normal(seed, 5, channels)
    expected = torch.tensor(closed_form(x, population), dtype=torch.float64)
    collapsed = population(x).detach()
    assert torch.equal(counts_of(collapsed, population), expected)
    with population.simulation.using(execution="stepped"):
        stepped = population(x).detach()
    assert stepped.shape == (steps, 5, channels)
    assert torch.equal(counts_of(stepped.mean(0), population), expected)
    torch.testing.assert_close(stepped.mean(0), collapsed, **CLOSE)


@every
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8])
def test_collapsed_and_stepped_decide_ties_alike(neuron: Neuron, steps: int):
    # θ = e^0 = 1 is exact, and sixteenths times a whole number of levels are: many of these are ties.
    population = build(neuron, timesteps=steps)
    population.set(torch.tensor(1.0), torch.tensor(0.25), torch.tensor(0.5))
    x = torch.arange(-35, 35, dtype=torch.float64).view(10, 7) / 16 + 0.25
    expected = ((x - 0.25) * neuron.resolution(steps) + 0.5).floor().clamp(*neuron.bounds(steps))
    assert torch.equal(counts_of(population(x).detach(), population), expected)
    with population.simulation.using(execution="stepped"):
        assert torch.equal(counts_of(population(x).detach().mean(0), population), expected)


@every
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (0, 7), (2, 0, 7)])
def test_any_number_of_leading_dimensions(neuron: Neuron, shape: tuple[int, ...]):
    population = build(neuron, timesteps=3)
    x = normal(0, *shape)
    assert population(x).shape == shape
    with population.simulation.using(execution="stepped"):
        assert population(x).shape == (3, *shape)


@pytest.mark.parametrize("neuron", codes(), ids=label)
@settings(max_examples=settings.default.max_examples // 20)
@given(seed=seeds, steps=timesteps)
def test_the_quantised_network_with_as_many_levels_is_the_spiking_one(neuron, seed, steps):
    population = build(neuron, seed, timesteps=steps, levels=neuron.resolution(steps))
    x = normal(seed, 5, 7)
    spiking = population(x).detach()
    # The same arithmetic, so equal to the last bit; it stays the network that was trained when T changes.
    for now in (steps, steps + 1):
        with population.simulation.using(network="quantised", timesteps=now):
            assert torch.equal(population(x).detach(), spiking)


@every
def test_one_threshold_for_the_site_is_the_same_threshold_in_every_channel(neuron: Neuron):
    single = build(neuron, granularity="tensor", timesteps=5)
    assert single.log_threshold.shape == single.v_init.shape == single.offset.shape == ()
    many = build(neuron, granularity="channel", timesteps=5)
    assert many.log_threshold.shape == (7,)
    many.set(single.threshold, single.offset, single.v_init)
    single.set(single.threshold, single.offset, single.v_init)
    x = normal(3, 5, 7)
    # exp(log(θ)) of a scalar and of a vector may differ in the last bit.
    torch.testing.assert_close(single(x), many(x), **CLOSE)


@every
@few
@given(seed=seeds, steps=timesteps)
def test_gradients_do_not_depend_on_the_execution(neuron, seed, steps):
    population = build(neuron, seed, timesteps=steps, levels=neuron.resolution(steps))
    weight = normal(seed + 1, 5, 7)
    gradients = []
    for mode in ({"execution": "collapsed"}, {"execution": "stepped"}, {"network": "quantised"}):
        x = normal(seed, 5, 7).requires_grad_()
        with population.simulation.using(**mode):
            value = population(x)
        value = value.mean(0) if value.ndim > 2 else value
        leaves = [x, population.log_threshold, population.v_init, population.offset]
        gradients.append(torch.autograd.grad((value * weight).sum(), leaves))
    assert any(bool(g.any()) for g in gradients[0])
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            # Sums of T shares in place of one number.
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


# Online ------------------------------------------------------------------------------------------------


@rate
@few
@given(seed=seeds, steps=timesteps, scale=st.sampled_from([0.5, 1.0, 3.0]))
def test_online_difference_is_the_loop_over_the_definition(neuron, seed, steps, scale):
    population = build(neuron, seed, timesteps=steps, schedule="online")
    currents = scale * normal(seed, steps, 3, 7)
    counts = loop(currents, population)
    clock = torch.arange(1, steps + 1, dtype=torch.float64).view(-1, 1, 1)
    expected = counts * population.threshold.detach() / clock + population.offset.detach()
    torch.testing.assert_close(online(population, running_means(currents), range(1, steps + 1)), expected, **CLOSE)


@rate
@few
@given(seed=seeds, steps=timesteps, scale=st.sampled_from([0.5, 1.0, 3.0]))
def test_online_instant_is_the_loop_over_the_definition(neuron, seed, steps, scale):
    population = build(neuron, seed, timesteps=steps, schedule="online", operators="instant")
    currents = scale * normal(seed, steps, 3, 7)
    counts = loop(currents, population)
    theta, offset = population.threshold.detach(), population.offset.detach()
    emitted = torch.diff(counts, dim=0, prepend=torch.zeros_like(counts[:1]))
    rows = online(population, currents, range(1, steps + 1))
    torch.testing.assert_close(rows, emitted * theta + offset, **CLOSE)
    # The mean of what was sent is the final count.
    torch.testing.assert_close(rows.mean(0), counts[-1] * theta / steps + offset, **CLOSE)


@pytest.mark.parametrize("signed", [True, False])
@few
@given(seed=seeds, steps=timesteps)
def test_clipped_counts_end_online_where_they_end_layerwise(signed, seed, steps):
    population = build(ClippedCount(signed=signed), seed, timesteps=steps)
    means = running_means(2 * normal(seed, steps, 3, 7))
    layerwise = population(means[-1]).detach()
    with population.simulation.using(schedule="online"):
        last = online(population, means, range(1, steps + 1))[-1]
    assert torch.equal(counts_of(last, population), counts_of(layerwise, population))


@rate
@few
@given(seed=seeds, steps=timesteps, operators=st.sampled_from(["difference", "instant"]), data=st.data())
def test_stretches_with_carried_state_are_one_window(neuron, seed, steps, operators, data):
    population = build(neuron, seed, timesteps=steps, schedule="online", operators=operators)
    rows = normal(seed, steps, 2, 3, 7)
    rows = running_means(rows) if operators == "difference" else rows
    whole = online(population, rows, range(1, steps + 1))
    assert population._state is None  # nothing is kept unless asked for
    cuts = sorted(data.draw(st.sets(st.integers(1, steps - 1)))) if steps > 1 else []
    edges = [0, *cuts, steps]
    parts = [online(population, rows[a:b], range(a + 1, b + 1), carry=True) for a, b in itertools.pairwise(edges)]
    torch.testing.assert_close(torch.cat(parts), whole, **CLOSE)
    population.reset()
    single = [online(population, rows[t : t + 1], range(t + 1, t + 2), carry=True) for t in range(steps)]
    torch.testing.assert_close(torch.cat(single), whole, **CLOSE)
    population.reset()
    torch.testing.assert_close(online(population, rows, range(1, steps + 1), carry=True), whole, **CLOSE)


@rate
@pytest.mark.parametrize("operators", ["difference", "instant"])
def test_online_accepts_an_empty_batch_and_rows_that_are_not_contiguous(neuron: Neuron, operators):
    population = build(neuron, timesteps=4, schedule="online", operators=operators)
    with population.simulation.running(range(1, 5)):
        assert population(torch.zeros(0, 7, dtype=torch.float64)).shape == (0, 7)
        assert population(torch.zeros(8, 0, 7, dtype=torch.float64)).shape == (8, 0, 7)
        x = normal(0, 5, 8, 7)
        assert torch.equal(population(x.transpose(0, 1)), population(x.transpose(0, 1).contiguous()))


@rate
@few
@given(seed=seeds, steps=timesteps)
def test_surrogate_gradient_is_that_of_the_clipped_count(neuron, seed, steps):
    """By hand: where the floor F_t lies within the bounds ∂N_t/∂(F_t) = 1, else 0, for every neuron."""
    population = build(neuron, seed, timesteps=steps, schedule="online")
    means = running_means(normal(seed, steps, 3, 7))
    weight = normal(seed + 1, steps, 3, 7)
    x = means.flatten(0, 1).requires_grad_()
    with population.simulation.running(range(1, steps + 1)):
        value = population(x)
    leaves = [x, population.log_threshold, population.v_init, population.offset]
    gradients = torch.autograd.grad((value * weight.flatten(0, 1)).sum(), leaves)

    theta, mu, v = population.threshold.detach(), population.offset.detach(), population.v_init.detach()
    lower, upper = neuron.bounds(steps)
    t = torch.arange(1, steps + 1, dtype=torch.float64).view(-1, 1, 1)
    level = ((means - mu) * t / theta + v).floor()
    inside = ((lower <= level) & (level <= upper)).double()
    counts = (value.detach().unflatten(0, (steps, 3)) - mu) * t / theta
    # Output of step t: N_t θ/t + μ.
    by_x = weight * inside
    by_log_theta = (weight * (counts * theta / t - inside * (means - mu))).sum((0, 1))
    by_v = (weight * inside * theta / t).sum((0, 1))
    by_offset = (weight * (1 - inside)).sum((0, 1))
    for got, expected in zip(gradients, (by_x.flatten(0, 1), by_log_theta, by_v, by_offset), strict=True):
        assert got.isfinite().all()
        # Sums of at most 27 terms in another order.
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@rate
def test_surrogate_gradient_of_instant_operators(neuron: Neuron):
    steps = 5
    population = build(neuron, timesteps=steps, schedule="online", operators="instant")
    currents, weight = normal(0, steps, 3, 7), normal(1, steps, 3, 7)
    x = currents.flatten(0, 1).requires_grad_()
    with population.simulation.running(range(1, steps + 1)):
        (population(x) * weight.flatten(0, 1)).sum().backward()
    theta, mu, v = population.threshold.detach(), population.offset.detach(), population.v_init.detach()
    level = ((currents - mu).cumsum(0) / theta + v).floor()
    lower, upper = neuron.bounds(steps)
    inside = ((lower <= level) & (level <= upper)).double()
    # s_t = N_t − N_{t-1} and ∂N_t/∂x_i = inside_t / θ for i ≤ t.
    expected = torch.zeros_like(currents)
    for t in range(steps):
        for i in range(t + 1):
            before = inside[t - 1] if i < t else 0.0
            expected[i] += weight[t] * (inside[t] - before)
    torch.testing.assert_close(x.grad.unflatten(0, (steps, 3)), expected, **CLOSE)
    assert population.log_threshold.grad.isfinite().all()


# Shared between layers ---------------------------------------------------------------------------------


def test_layers_that_read_the_same_tensor_get_the_same_spikes_computed_once():
    population, seen = build(SignedIF(), readers=3, timesteps=4), Seen()
    population.simulation.observers.append(seen)
    x = normal(0, 5, 7)
    first, second, third = population(x), population(x), population(x)
    assert first is second is third
    assert len(seen.calls) == 1
    assert population.once._latest == {}  # the tensors are let go after the last reader


def test_the_next_pass_and_another_tensor_are_encoded_again():
    population, seen = build(SignedIF(), readers=2, timesteps=4), Seen()
    population.simulation.observers.append(seen)
    x, y = normal(0, 5, 7), normal(1, 5, 7)
    for value in (x, x, x, x):
        population(value)
    assert len(seen.calls) == 2
    # A pass that stopped before its second reader leaves nothing behind that another input could get.
    population(x)
    alone = build(SignedIF(), timesteps=4)
    assert torch.equal(population(y), alone(y))
    assert torch.equal(population(y), alone(y))
    assert len(seen.calls) == 4
    population(x)
    population.reset()
    assert population.once._latest == {}


CHANGES = {
    "T": lambda population: setattr(population.simulation, "timesteps", 3),
    "execution": lambda population: setattr(population.simulation, "execution", "stepped"),
    "network": lambda population: setattr(population.simulation, "network", "ann"),
    "asleep": lambda population: setattr(population, "active", False),
    "a parameter, unseen by torch": lambda population: population.log_threshold.data.add_(0.5),
    "dtype": lambda population: population.to(torch.float32),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("neuron", [SignedIF(), AdaptiveDigit()], ids=label)
@torch.no_grad()
def test_the_call_after_a_change_is_the_first_one_of_a_population_made_so(neuron: Neuron, change):
    warm, fresh, x = build(neuron, timesteps=8), build(neuron, timesteps=8), 0.01 * normal(0, 5, 7)
    before = [warm(x), warm(x)]
    assert torch.equal(*before)
    for population in (warm, fresh):
        CHANGES[change](population)
    x = x.to(warm.log_threshold.dtype)
    assert torch.equal(warm(x), fresh(x)) and not torch.equal(warm(x), before[0])


@pytest.mark.parametrize("neuron", [SignedIF(), AdaptiveDigit()], ids=label)
def test_who_looks_after_a_call_sees_the_next_and_gradients_flow_when_asked_for(neuron: Neuron):
    population, x = build(neuron, timesteps=8), normal(0, 5, 7)
    with torch.no_grad():
        before = [population(x), population(x)][1]
        counts, gain, code = population(x, "counts")
        again = torch_.decode(counts, code, x.dtype, gain)
        with population.simulation.using(observers=[Seen()]):
            assert torch.equal(population(x), before)
            (seen,) = population.simulation.observers
    assert torch.equal(again, before) and len(seen.calls) == 1
    assert population(x).requires_grad


# Not ready, or asked for what cannot be ----------------------------------------------------------------


@every
@pytest.mark.parametrize("network", ["quantised", "snn"])
def test_thresholds_must_have_been_set(neuron: Neuron, network):
    population = Population("block.mlp", 7, neuron, Simulation(network=network))
    assert not population.is_set
    with pytest.raises(NotCalibratedError, match=r"site block\.mlp has no thresholds yet: run fas\.calibrate"):
        population(torch.zeros(1, 7))
    population.set(torch.ones(7), torch.zeros(7), torch.full((7,), 0.5))
    assert population.is_set
    population(torch.zeros(1, 7))


def test_one_missing_threshold_is_one_too_many():
    population = build(SignedIF())
    population.log_threshold.data[3] = math.nan
    with pytest.raises(NotCalibratedError, match="has no thresholds yet"):
        population(torch.zeros(1, 7))


@pytest.mark.parametrize("network", ["ann", "snn"])
def test_the_dense_network_and_sites_not_yet_reached_need_none(network):
    population = Population("a", 7, SoftResetIF(), Simulation(network=network), activation=torch.relu)
    population.active = network == "ann"
    x = torch.randn(3, 7)
    assert torch.equal(population(x), x.relu())


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_set_refuses_thresholds_that_are_no_positive_numbers(bad: float):
    population = build(SignedIF())
    before = population.threshold.detach().clone()
    threshold = torch.ones(7)
    threshold[2] = bad
    with pytest.raises(CalibrationError, match=r"site block\.mlp: thresholds must be positive and finite"):
        population.set(threshold, torch.zeros(7), torch.zeros(7))
    assert torch.equal(population.threshold, before)


@rate
def test_online_outside_the_forward_of_a_model(neuron: Neuron):
    population = build(neuron, timesteps=4, schedule="online")
    with pytest.raises(FASError, match=r"site block\.mlp ran outside the model's own forward"):
        population(normal(0, 4, 7))
    with (
        population.simulation.running(range(1, 5)),
        pytest.raises(FASError, match="call the converted model and not a part of it"),
    ):
        population(normal(0, 6, 7))


def test_phase_code_does_not_run_online():
    population = build(Phase(), timesteps=4, schedule="online")
    with (
        population.simulation.running(range(1, 5)),
        pytest.raises(FASError, match=r"Phase fires after its whole input only.*schedule = 'layerwise'"),
    ):
        population(normal(0, 4, 7))


# Precision, observers, training ------------------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_half_precision_input_meets_float32_parameters(neuron: Neuron, granularity, dtype: torch.dtype):
    population = build(neuron, granularity=granularity, timesteps=4, levels=4).float()
    x = torch.randn(20, 7).to(dtype)
    modes = [{}, {"execution": "stepped"}, {"network": "quantised"}]
    if isinstance(neuron, RateNeuron):
        modes += [{"schedule": "online"}, {"schedule": "online", "operators": "instant"}]
    for mode in modes:
        with population.simulation.using(**mode), population.simulation.running(range(1, 5)):
            value, exact = population(x), population(x.float())
        assert value.dtype == dtype
        # Computed in float32, rounded once at the end.
        assert torch.equal(value, exact.to(dtype))
    assert all(parameter.dtype == torch.float32 for parameter in population.parameters())


@every
@few
@given(seed=seeds, steps=timesteps)
def test_observers_get_the_spikes_of_the_real_trains(neuron, seed, steps):
    population = build(neuron, seed, timesteps=steps)
    x, seen = normal(seed, 2, 3, 7), Seen()
    population.simulation.observers.append(seen)
    population(x)
    with population.simulation.using(execution="stepped"):
        sent = population(x).detach()
    levels = (sent - population.offset.detach()) / (unit(population) * steps)
    levels = levels.round().abs()
    spikes = levels if isinstance(neuron, RateNeuron) else levels.sign()
    (path, collapsed, total), (_, stepped, _) = seen.calls
    assert (path, total) == ("block.mlp", steps)
    assert collapsed.shape == (1, 2, 3, 7) and stepped.shape == (steps, 2, 3, 7)
    assert torch.equal(stepped, spikes)
    assert torch.equal(collapsed[0], spikes.sum(0))
    assert not collapsed.requires_grad and not stepped.requires_grad


@rate
@pytest.mark.parametrize("operators", ["difference", "instant"])
def test_observers_online_get_the_spikes_of_the_loop(neuron: Neuron, operators):
    steps, seen = 6, Seen()
    population = build(neuron, timesteps=steps, schedule="online", operators=operators)
    currents = 2 * normal(0, steps, 3, 7)
    rows = running_means(currents) if operators == "difference" else currents
    spikes = torch.diff(loop(currents, population), dim=0, prepend=torch.zeros(1, 3, 7, dtype=torch.float64)).abs()
    population.simulation.observers.append(seen)
    online(population, rows, range(1, steps + 1))
    for t in range(steps):
        online(population, rows[t : t + 1], range(t + 1, t + 2), carry=True)
    whole, *single = (spikes for _, spikes, _ in seen.calls)
    assert torch.equal(whole, spikes)
    assert torch.equal(torch.cat(single), spikes)
    assert not whole.requires_grad


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("optimiser", "rate"), [(torch.optim.SGD, 1e6), (torch.optim.Adam, 1.0), (torch.optim.Adam, 1e4)]
)
def test_no_step_of_an_optimiser_takes_the_threshold_out_of_range(optimiser, rate: float, sign: float):
    population = build(ClippedCount(), timesteps=4).float()
    steps = optimiser(population.parameters(), lr=rate)
    (sign * population(10 * torch.randn(50, 7)).square().sum()).backward()
    steps.step()
    threshold = population.threshold
    assert (threshold > 0).all() and threshold.isfinite().all()
    assert (1 / threshold).isfinite().all()
