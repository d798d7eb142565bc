"""Experts whose weights lie in one tensor [experts, …]: the rows of each as a linear layer that spikes can drive."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fas.errors import FASError
from fas.kernels.interface.code import version_of
from fas.layers.linear import SpikingLinear
from fas.layers.population import Population


class ExpertLinear(nn.Module):
    """y = W_e x + b_e, the part of one expert in a weight of all; it has no parameters of its own.

    Args:
        experts: the module that holds the weight.
        name: of the weight there, [experts, out, in], or [experts, in, out] where ``experts.is_transposed``.
        index: e.
    """

    def __init__(self, experts: nn.Module, name: str, index: int) -> None:
        super().__init__()
        # A plain reference: the module is no part of its part.
        self.experts: Any
        object.__setattr__(self, "experts", experts)
        self.name, self.index = name, index
        self.transposed = bool(experts.is_transposed)
        shape = cast(Tensor, getattr(experts, name)).shape[1:]
        self.in_features, self.out_features = shape if self.transposed else reversed(shape)
        self._view: tuple[Tensor, tuple[int, int], Tensor] | None = None

    @property
    def weight(self) -> Tensor:
        """W_e, a view; the same object as long as the weight of all stays the same and no gradient is asked for."""
        whole: Tensor = getattr(self.experts, self.name)
        if torch.is_grad_enabled() and whole.requires_grad:
            return whole[self.index]
        version = version_of(whole)
        if self._view is None or self._view[0] is not whole or self._view[1] != version:
            self._view = whole, version, whole.detach()[self.index]
        return self._view[2]

    @property
    def bias(self) -> Tensor | None:
        """b_e, a view, None where experts have no biases."""
        return getattr(self.experts, f"{self.name}_bias")[self.index] if self.experts.has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [*B, in] to [*B, out]."""
        return functional.linear(x, self.weight.T if self.transposed else self.weight, self.bias)


class SpikingExpert(SpikingLinear):
    """``ExpertLinear`` that spikes drive; see ``SpikingLinear``. Weight and bias stay where they are."""

    def _hold(self, dense: nn.Module) -> torch.device:
        return cast(Tensor, dense.weight).device

    @property
    def weight(self) -> Any:  # type: ignore[override]
        """W_e."""
        return object.__getattribute__(self, "_dense").weight

    @property
    def bias(self) -> Any:  # type: ignore[override]
        """b_e."""
        return object.__getattribute__(self, "_dense").bias

    def dense(self) -> Any:
        """Return the dense layer that this one stands for."""
        return object.__getattribute__(self, "_dense")


class Routed(nn.Module):
    """A module of fused experts that runs them one by one, each on the tokens that the router gives it.

    ``up`` and ``down`` hold the linear layers of every expert. In the dense network, with nobody looking at these, the
    class's own function runs, so that answers are bit-equal to those before conversion. A probe (``every``) takes all
    tokens through every expert. ``taken`` tells those who look which tokens an expert has got, bool of all.
    """

    every = False
    taken: Tensor | None = None

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        """Return the weighted sum of the experts' outputs, as the class does: of hidden states, experts, weights."""
        up, down = cast(nn.ModuleList, self.up), cast(nn.ModuleList, self.down)
        spiking = next((layer for layer in (*up, *down) if isinstance(layer, SpikingLinear)), None)
        watched = self.every or self._watched()
        if (spiking is None or spiking.population.simulation.network == "ann") and not watched:
            dense: Tensor = super().forward(*arguments, **named)
            return dense
        if spiking is not None and spiking.population.simulation.folds:
            raise FASError(
                f"{spiking.population.path}: the tokens that an expert gets change from step to step, so experts run "
                "layerwise only: set model.schedule = 'layerwise', or convert with exclude=['*.experts.*']"
            )
        hidden, index, weights = (*arguments, *named.values())
        result = torch.zeros_like(hidden)
        for e in range(len(up)) if self.every else index.unique().tolist():
            if e >= len(up):  # a token of another process's experts
                continue
            if self.every:
                share = (weights * (index == e)).sum(-1, keepdim=True)
                result = result + (self._expert(e, hidden) * share).to(result.dtype)
                continue
            rows, place = (index == e).nonzero(as_tuple=True)
            self.taken = (index == e).any(-1) if watched else None
            found = self._expert(e, hidden[rows]) * weights[rows, place, None]
            result.index_add_(0, rows, found.to(result.dtype))
        return result

    def _expert(self, e: int, x: Tensor) -> Tensor:
        own: Any = self
        inner = own.up[e](x)
        found: Tensor = own.down[e](own._apply_gate(inner) if own.has_gate else own.act_fn(inner))
        return own.post_expert_norm(found) if own.has_post_expert_norm else found

    def _watched(self) -> bool:
        parts: Any = (module for name in ("up", "down") for module in getattr(self, name).modules())
        return any(part._forward_pre_hooks or part._forward_hooks for part in parts)


def is_routed(population: Population, layers: Any) -> bool:
    """Whether the layer that owns a population is an expert's, which reads the tokens given to it alone."""
    return isinstance(layers.get(population.path), SpikingExpert)
