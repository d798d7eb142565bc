"""The shared exponent of a token against its definition in whole numbers, and what populations make of it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fas.layers.adapting_population import AdaptingPopulation
from fas.layers.simulation import Simulation
from fas.neurons.adaptive_digit import AdaptiveDigit
from fas.neurons.signed_digit import SignedDigit

sizes = st.floats(2.0**-12, 2.0**12, width=32)


def by_hand(token: list[float], neuron: AdaptiveDigit, steps: int) -> float:
    """2^e, found by trying exponents one after the other."""
    size = [abs(z) if neuron.signed else max(z, 0.0) for z in token]
    mean, peak, most = math.fsum(size) / len(size), max(size), neuron.bounds(steps)[1]
    e = 0
    while e < 16 and mean * 2.0 ** (e + 1) <= neuron.least:
        e += 1
    while peak * 2.0**e > most:
        e -= 1
    # The first rule alone lowers thresholds, the second may raise them: 2^(e+1) would clip, or go above `least`.
    return 2.0**e


@given(st.lists(st.lists(sizes, min_size=4, max_size=4), min_size=1, max_size=3), st.booleans(), st.integers(5, 8),
       st.sampled_from([1.0, 3.0, 4.0, 8.0]))  # fmt: skip
def test_exponent_is_the_largest_that_clips_nothing_and_lifts_no_further_than_asked(tokens, signed, steps, least):
    neuron = AdaptiveDigit(signed=signed, least=least)
    # Alternating signs; powers of two beside the draws would meet a rule exactly, which float32 sums may miss.
    z = torch.tensor(tokens, dtype=torch.float64) * torch.tensor([1.0, -1.0, 1.0, -1.0])
    found = neuron.gain(z, neuron.resolution(steps))
    assert found.shape == (len(tokens), 1)
    assert found.flatten().tolist() == [by_hand(token, neuron, steps) for token in z.tolist()]
    # A token alone takes another way.
    for one, gain in zip(z, found, strict=True):
        assert torch.equal(neuron.gain(one[None], neuron.resolution(steps)), gain[None])


def test_the_shape_and_the_size_of_a_gain():
    neuron, tokens = AdaptiveDigit(), torch.full((2, 3, 8), 0.3)
    # 2^3 · 0.3 is at most 4, the mean count that is asked for; 2^4 · 0.3 is above.
    assert torch.equal(neuron.gain(tokens, 975), torch.full((2, 3, 1), 8.0))
    assert torch.equal(neuron.gain(tokens[:1, :1], 975), torch.full((1, 1, 1), 8.0))
    assert torch.equal(neuron.gain(torch.ones(1, 4), 975), torch.full((1, 1), 4.0))
    assert torch.equal(neuron.gain(torch.full((1, 4), 1.3), 975), torch.full((1, 1), 2.0))


def test_silent_and_broken_tokens_have_finite_gains():
    neuron = AdaptiveDigit()
    tokens = torch.tensor([[0.0, 0.0], [1e-30, 0.0], [1e30, 1.0], [math.inf, 1.0]])
    gains = neuron.gain(tokens, 975)
    # The largest gain, and the smallest, its inverse squared.
    assert gains.flatten().tolist() == [2.0**16, 2.0**16, 2.0**-32, 2.0**-32]
    assert torch.equal(gains, torch.cat([neuron.gain(token[None], 975) for token in tokens]))


def adapting(steps: int = 8, channels: int = 6, **fields: float) -> AdaptingPopulation:
    population = AdaptingPopulation(
        "site", channels, AdaptiveDigit(**fields), Simulation(timesteps=steps, network="snn")
    )
    ones = torch.ones(channels)
    population.set(ones * population.neuron.resolution(steps), ones * 0, ones * 0.5)
    return population


@pytest.mark.parametrize("execution", ["collapsed", "stepped"])
@pytest.mark.parametrize("form", ["values", "mean"])
def test_a_population_codes_each_token_at_its_own_threshold(execution: str, form: str):
    """A token of 2^-k times another is coded as that one is, 2^-k times: nothing is lost to its size."""
    population = adapting()
    population.simulation.execution = execution
    token = torch.tensor([[40.0, -3.0, 7.0, 0.0, 120.0, -1.0]])
    scales = 2.0 ** -torch.arange(3.0, 12).unsqueeze(1)
    # From the scale where the mean is below `least` on, all are the same code.
    small = token * 2.0**-5
    with torch.no_grad():
        sent, first = population(token * scales * 2.0**-5, form), population(small, form)
    if execution == "stepped" and form == "values":
        sent, first = sent.mean(0), first.mean(0)
    assert torch.equal(sent, first * scales)
    plain = SignedDigit().settle((small * scales[-1] + 0.5).floor(), 8)
    assert not plain.any(), "without adapting, the smallest would be silent"


def test_no_token_is_clipped():
    population = adapting(steps=5)
    most = population.neuron.resolution(5)
    x = torch.tensor([[1000.0 * most, 3.0, -600.0 * most, 0.0, 0.0, 1.0]])
    with torch.no_grad():
        sent = population(x, "mean")
    # Half a level of the raised threshold: 2^-e ≤ 2 · 1000.
    assert (sent - x).abs().max() <= 1024 / 2
    assert population.gain(x).item() == 2.0**-10


def test_the_quantised_network_adapts_alike_and_passes_gradients_through():
    population = adapting(steps=8)
    population.simulation.levels = population.neuron.resolution(8)
    x = (torch.randn(5, 6, generator=torch.Generator().manual_seed(0)) * 0.01).requires_grad_()
    population.simulation.network = "quantised"
    quantised = population(x)
    (gradient,) = torch.autograd.grad(quantised.sum(), x, retain_graph=True)
    assert torch.equal(gradient, torch.ones_like(x)), "inside the range the floor is passed straight through"
    population.simulation.network = "snn"
    with torch.no_grad():
        torch.testing.assert_close(population(x.detach(), "mean"), quantised.detach(), rtol=1e-6, atol=0)


def test_least_must_be_positive():
    for least in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="least is"):
            AdaptiveDigit(least=least)
