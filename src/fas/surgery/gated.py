"""Finding the normalisations and activations that gated populations can take the place of."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fas.layers.gated import gated
from fas.layers.gated_operators import GatedActivation, GatedNorm
from fas.layers.simulation import Simulation
from fas.surgery.trace import is_activation, is_linear

_ACTIVATIONS = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "tanh": torch.tanh,
}
# Half a percent of one, far above rounding and below the distance of any two of the functions somewhere.
_SAME = 1e-5


def attach_operators(model: nn.Module, simulation: Simulation) -> None:
    """Put gated populations in the place of every normalisation and activation that they can compute.

    Which function a module computes is found by running it, not by its name; what is neither LayerNorm nor
    RMSNorm, nor a fitted activation, stays as it is. ReLU stays: it is a comparison.
    """
    exchanged = {path: made for path, module in model.named_modules() if (made := _gated(module, simulation))}
    for path, module in exchanged.items():
        module.train(model.get_submodule(path).training)
        model.set_submodule(path, module)


def detach_operators(model: nn.Module) -> None:
    """Put the dense modules back."""
    for path, module in list(model.named_modules()):
        if isinstance(module, GatedActivation | GatedNorm):
            model.set_submodule(path, module.dense())


def _gated(module: nn.Module, simulation: Simulation) -> nn.Module | None:
    if next(module.children(), None) is not None or is_linear(module):
        return None
    if is_activation(module):
        name = _activation(module)
        return None if name is None else GatedActivation(module, gated(name), simulation)
    form = norm_form(module) if type(module).__name__.endswith("Norm") else None
    return None if form is None else GatedNorm(module, simulation, **form)


def _activation(module: nn.Module) -> str | None:
    """Return the name of the fitted function that a module computes."""
    if next(module.parameters(), None) is not None:
        return None
    x = torch.linspace(-6, 6, 97, device="cpu")
    found = module(x)
    return next((n for n, f in _ACTIVATIONS.items() if float((found - f(x)).abs().max()) < _SAME), None)


def norm_form(module: nn.Module) -> dict[str, Any] | None:
    """Return which normalisation a module computes, as arguments of ``GatedNorm``."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 1:
        return None
    names = ("eps", "variance_epsilon", "epsilon")
    epsilon = next(
        (float(getattr(module, name)) for name in names if isinstance(getattr(module, name, None), float)), None
    )
    if epsilon is None:
        return None
    # Parameters may lie on the meta device: only the form is asked for.
    twin = copy.deepcopy(module).to_empty(device="cpu").float()
    gain = torch.linspace(0.5, 1.5, len(weight))
    cast(nn.Parameter, twin.weight).data.copy_(gain)
    if getattr(twin, "bias", None) is not None:
        cast(nn.Parameter, twin.bias).data.zero_()
    x = torch.linspace(-1, 3, 3 * len(weight)).view(3, -1).sin()
    with torch.no_grad():
        found = twin(x)
    for centred in (True, False):
        level = x - x.mean(-1, keepdim=True) if centred else x
        normal = level / (level.square().mean(-1, keepdim=True) + epsilon).sqrt()
        for plus_one in (True, False):
            if float((found - normal * (gain + plus_one)).abs().max()) < _SAME:
                return {"centred": centred, "plus_one": plus_one, "epsilon": epsilon}
    return None
