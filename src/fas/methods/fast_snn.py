"""Fast-SNN: a quantised network of few bits, read as a spiking one whose neurons take spikes back."""

from __future__ import annotations

from dataclasses import dataclass

from fas.checks import check_whole
from fas.methods import RateCoded
from fas.types import Stage


@dataclass(frozen=True, kw_only=True)
class FastSNN(RateCoded):
    """A b-bit quantised network, T = 2^b − 1 time steps, v_0 = θ/2, and signed IF neurons.

    A neuron sends −1 where its potential is below zero while its count is positive, so that early spikes are taken
    back; layer-wise fine-tuning removes what remains. The quantised network is trained beforehand by
    ``ReduceBits`` (progressively fewer bits) or ``fas.finetune``; without, thresholds of the least squared error.

    Attributes:
        bits: b of the quantised activations; L = 2^b − 1.
        timesteps: T; 2^b − 1 if not given, as in the paper.
        levels: L of the quantised network; 2^b − 1 if not given.
        tune_epochs: passes over the calibration data per layer; 0 leaves layers as they are.
        tune_rate: learning rate of the layer-wise fine-tuning.

    Raises:
        ValueError: a value outside its range; the message names it.

    Source: Hu et al. 2023, arXiv 2305.19868, and its released code. They differ in the neuron: the code takes a spike
    back at v ≤ −1e-3, the paper below 0, which we follow; and in the answer, the sum of the last layer over time in the
    code, the mean in the paper and here. Deviations: weights are not quantised (nor are those of the code's ResNet-18);
    neurons stand at the inputs of layers, after maxima, where the code has strided convolutions instead; the
    identity beside a residual block without projection carries the current in front of the neurons, where the code's
    carries spikes; an average in front of the last layer is coded by neurons, where the code averages spikes; inputs of
    both signs, which the paper does not have, get the same neuron with a lower bound of −T.

    Example:
        >>> FastSNN(bits=2).timesteps
        3
    """

    neuron = "signed_if"

    bits: int = 3
    timesteps: int = None  # type: ignore[assignment]
    levels: int = None  # type: ignore[assignment]
    tune_epochs: int = 1
    tune_rate: float = 1e-3

    def __post_init__(self) -> None:
        """Check every field, and derive T and L from b where they are not given."""
        check_whole("bits", self.bits, 1, 8)
        for name in ("timesteps", "levels"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, 2**self.bits - 1)
        super().__post_init__()
        self.stages()

    def stages(self) -> tuple[Stage, ...]:
        """Thresholds of the smallest squared error, then the layer-wise fine-tuning."""
        from fas.stages.set_thresholds import SetThresholds

        return SetThresholds(rule="error"), *self.tuning()

    def tuning(self) -> tuple[Stage, ...]:
        """Return what follows the training of the quantised network, whose thresholds are kept."""
        from fas.stages.fast_snn import TuneLayers

        return (TuneLayers(self.tune_epochs, self.tune_rate),) if self.tune_epochs else ()
