"""Gated normalisations and activations beside the exact ones."""

import pytest
import torch
from torch import nn

from fas.layers.gated import DIGITS, gated
from fas.layers.gated_operators import GatedActivation, GatedNorm
from fas.layers.simulation import Simulation

FORMS = [(True, False), (False, False), (False, True)]


def norm(centred, plus_one, simulation):
    dense = nn.LayerNorm(24, eps=1e-3) if centred else nn.RMSNorm(24, eps=1e-3)
    for parameter in dense.parameters():
        nn.init.normal_(parameter)
    form = {"centred": centred, "plus_one": plus_one, "epsilon": 1e-3}
    return dense, GatedNorm(dense, simulation, **form)


@pytest.mark.parametrize(("centred", "plus_one"), FORMS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_norms_are_within_the_errors_of_their_functions(centred, plus_one, scale):
    _, module = norm(centred, plus_one, Simulation())
    x = scale * torch.randn(3, 5, 24, dtype=torch.float64)
    level = x - x.mean(-1, keepdim=True) if centred else x
    normal = level / (level.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    expected = normal * (module.weight.double() + plus_one)
    if module.bias is not None:
        expected = expected + module.bias.double()
    # Half the error of the square, those of the root, the reciprocal and its digits, all relative, and float32.
    largest = gated("square").max_error / 2 + gated("square_root").max_error + gated("reciprocal").max_error
    largest += DIGITS.max_error
    bound = (1.01 * largest + 1e-6) * (normal * (module.weight + plus_one)).abs() + 1e-6
    found = module.double()(x)
    assert bool(((found - expected).abs() <= bound).all()) and not torch.equal(found, expected)


@pytest.mark.parametrize(("centred", "plus_one"), FORMS)
def test_the_dense_norm_is_inside_and_shares_its_parameters(centred, plus_one):
    simulation = Simulation(network="ann")
    dense, module = norm(centred, plus_one, simulation)
    x = torch.randn(4, 24)
    assert torch.equal(module(x), dense(x))
    assert [name for name, _ in module.named_parameters()] == [name for name, _ in dense.named_parameters()]
    # Loading and casting replace parameters: the dense module follows.
    module.weight = nn.Parameter(torch.ones(24))
    assert module.dense().weight is module.weight
    simulation.network = "snn"
    module(x).sum().backward()
    assert module.weight.grad is not None and bool(module.weight.grad.any())


def test_half_precision_norms():
    _, module = norm(True, False, Simulation())
    module.bfloat16()
    x = torch.randn(4, 24).bfloat16()
    assert module(x).dtype == torch.bfloat16
    # One rounding to 8 bits of each of the result, gain and bias, of size up to about 8.
    expected = nn.functional.layer_norm(x.float(), (24,), module.weight.float(), module.bias.float(), 1e-3)
    torch.testing.assert_close(module(x).float(), expected, rtol=0.02, atol=0.02)


def test_activations():
    simulation = Simulation()
    module = GatedActivation(nn.SiLU(), gated("silu"), simulation)
    x = torch.randn(5, 7)
    assert torch.equal(module(x), DIGITS(gated("silu")(x))) and not torch.equal(module(x), nn.SiLU()(x))
    simulation.network = "ann"
    assert torch.equal(module(x), nn.SiLU()(x))
    assert not list(module.children()) and not list(module.parameters())
