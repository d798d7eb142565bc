"""The price of spikes in training: its value against recorded spikes, its gradient against plain formulas."""

import math

import pytest
import torch
from tiny_models import FAMILIES

import fas
from fas.layers.population import Population
from fas.layers.simulation import Simulation
from fas.neurons.phase import Phase
from fas.neurons.signed_if import SignedIF
from fas.neurons.ternary_phase import TernaryPhase
from fas.training.spike_penalty import penalised, soft_spikes
from fas.training.trainer import recomputing


def population(neuron, threshold=2.0, offset=0.5, steps=4):
    found = Population("a", 1, neuron, Simulation(timesteps=steps))
    found.set(torch.tensor([threshold]), torch.tensor([offset]), torch.tensor([0.5]))
    return found


@pytest.mark.parametrize(
    "neuron", ["signed_if", "phase", "ternary_phase", "signed_digit", "clipped_count", "outlier_aware"]
)
@pytest.mark.parametrize("name", ["gpt2", "llama", "albert"])
def test_the_cost_is_that_of_the_spikes_that_occur(name, neuron):
    family = FAMILIES[name]
    batch = family.batch()
    model = fas.convert(family.build(), fas.FAS(timesteps=4, neuron=neuron), calibration=[batch])
    with fas.record(model) as recording, torch.no_grad():
        model(**batch)
    with penalised(model, 0.5) as penalty:
        for _ in range(2):
            model(**batch)
        cost = penalty.cost()
    # Layers that read one tensor count once, and one pass only; float32 sums of whole numbers are exact.
    assert float(cost.detach()) == pytest.approx(0.5 * recording.spikes_per_neuron, rel=1e-6)
    assert cost.requires_grad and not model._forward_pre_hooks


def test_the_gradient_of_a_rate_code_is_one_spike_per_level():
    neurons, x = population(SignedIF()), torch.tensor([[0.6], [1.2], [-1.3], [9.0]], requires_grad=True)
    # Levels of 0.5 around 0.5: z = 0.2, 1.4, −3.6 and 17, which is clipped.
    spikes = soft_spikes(neurons, x)
    assert spikes.flatten().tolist() == [0, 1, 4, 4]
    spikes.sum().backward()
    assert x.grad.flatten().tolist() == [0, 2, -2, 2]
    assert neurons.offset.grad.tolist() == [-2] and neurons.v_init.grad.tolist() == [1]
    # Up to the initial potential, ∂|z|/∂ ln θ = −|z|.
    assert neurons.log_threshold.grad.item() == pytest.approx(-(1.4 + 3.6 + 17), rel=1e-5)


@pytest.mark.parametrize("neuron", [Phase(), TernaryPhase()], ids=str)
def test_the_gradient_of_digits_is_that_of_their_logarithm(neuron):
    neurons, x = population(neuron, offset=0.0), torch.tensor([[0.01], [0.9], [-0.3]], requires_grad=True)
    spikes = soft_spikes(neurons, x)
    unit = 2.0 / neuron.resolution(4)
    assert spikes.tolist() == neuron.spikes((x.detach() / unit + 0.5).floor(), 4).tolist()
    spikes.sum().backward()
    slopes = [0.0, *(math.copysign(1, v) / (math.log(2) * unit * (1 + abs(v) / unit)) for v in (0.9, -0.3))]
    assert x.grad.flatten().tolist() == pytest.approx(slopes, rel=1e-5)


def test_blocks_that_are_recomputed_are_paid_once():
    batch = FAMILIES["gpt2"].batch()
    gradients = []
    for again in (False, True):
        model = fas.convert(FAMILIES["gpt2"].build(), fas.FAS(timesteps=4), calibration=[batch]).train()
        model.config.use_cache = False
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        with penalised(model, 1.0) as penalty:
            if again:
                with recomputing(model):
                    for _ in range(2):
                        model.zero_grad()
                        model(**batch)
                        penalty.cost().backward()
            else:
                model(**batch)
                penalty.cost().backward()
        gradients.append(model.transformer.h[0].mlp.c_fc.weight.grad)
    # Recomputed in the same order: the same to the last bit but for sums on other threads.
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-9)
    assert gradients[0].any()


def test_no_price_and_no_spikes_cost_nothing():
    model = FAMILIES["gpt2"].build()
    with penalised(model, 1.0) as penalty:
        assert penalty is None
    fas.convert(model, fas.FAS(timesteps=4), calibration=[FAMILIES["gpt2"].batch()])
    with penalised(model, 0.0) as penalty:
        assert penalty is None
