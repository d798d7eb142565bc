"""Integrate-and-fire neuron with soft reset: binary spikes that cannot be taken back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fas.types import Emission, RateNeuron


@dataclass(frozen=True)
class SoftResetIF(RateNeuron):
    """IF neuron with reset by subtraction: s_t = [v_{t-1} + x_t ≥ θ], v_t = v_{t-1} + x_t − θ s_t.

    Firing at equality makes the count equal QCFS. Counts run from 0 to T: for non-negative activations only.

    Attributes:
        gamma: γ of the surrogate gradient ∂s/∂v = max(0, γ − ``|v − θ|``)/γ², in the unit of the activation; it passes
            through resets too; online with instant operators. 0 for the gradient of the clipped count.

    Raises:
        ValueError: γ below 0.

    Source: Rueckauer et al. 2017 (soft reset); Bu et al., ICLR 2022 (v_0 = θ/2 and QCFS); the triangle is that of
    Deng et al., ICLR 2022 (arXiv 2202.11946), and of the released code of FAS (arXiv 2502.04405).
    """

    gamma: float = 0.0

    signed: ClassVar[bool] = False  # type: ignore[misc]
    # An early spike is never undone.
    exact_when: ClassVar[Literal["even", "any"]] = "even"
    emission: ClassVar[Emission] = "binary"
    takes_back: ClassVar[bool] = False
    recursion: ClassVar[Literal["binary"]] = "binary"

    def __post_init__(self) -> None:
        """Check γ."""
        if not 0 <= self.gamma < float("inf"):
            raise ValueError(f"gamma is {self.gamma!r}; expected a number of at least 0")

    def fire(self, currents: Tensor, v_init: Tensor, threshold: Tensor) -> Tensor:
        """Return the spikes of every step, with the surrogate gradient of γ.

        Args:
            currents: x_t, shape [T, *B, C], in the unit of the activation.
            v_init: v_0/θ, shape (C,) or ().
            threshold: θ, of the same shape.
        """
        potential, spikes = (v_init * threshold).expand_as(currents[0]), []
        for current in currents:
            potential = potential + current
            spikes.append(_Triangle.apply(potential - threshold, self.gamma))
            potential = potential - threshold * spikes[-1]
        return torch.stack(spikes)

    def step(
        self, current: Tensor, potential: Tensor, count: Tensor, threshold: Tensor, timesteps: int
    ) -> tuple[Tensor, Tensor]:
        """Fire once when the potential reaches the threshold."""
        potential = potential + current
        spikes = (potential >= threshold).to(potential.dtype)
        return spikes, potential - threshold * spikes

    def scan(self, levels: Tensor, count: Tensor, timesteps: int) -> Tensor:
        """N_t = max(N_{t-1}, min(N_{t-1} + 1, F_t)), one step after the other."""
        counts = []
        for level in levels:
            count = torch.maximum(count, torch.minimum(count + 1, level))
            counts.append(count)
        return torch.stack(counts)


class _Triangle(torch.autograd.Function):
    """[x ≥ 0] with the gradient max(0, γ − |x|)/γ²."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.gamma = gamma
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * (ctx.gamma - x.abs()).clamp_min(0) / ctx.gamma**2, None
