"""Optimal ANN-SNN conversion: rate norm layers, whose thresholds are fitted for fast convergence of rates."""

from __future__ import annotations

from dataclasses import dataclass

from fas.methods import RateCoded
from fas.types import Stage


@dataclass(frozen=True, kw_only=True)
class RateNorm(RateCoded):
    """IF neurons in the place of rate norm layers r = clip(ReLU(x)/θ, 0, 1), θ = running maximum × σ(s).

    Stage 1 trains weights with s fixed (``TrainRates``, for transformers models ``FinetuneRates``), stage 2
    (``FitRates``, run by ``fas.calibrate``, needs no labels) fits s alone, and stage 3 is the spiking network itself.
    A pretrained network is what stage 1 leaves, and begins with stage 2; weights that are trained once more at the
    thresholds of stage 2 (``scale=None``) win back what clipping costs.

    Attributes:
        omega_weight: λ of the mean of Ω = Σr/‖r‖² in the loss: larger for few steps, as low thresholds clip.
        scale: s at the start of stage 2.
        fit_epochs: passes of stage 2 over the calibration data.
        fit_rate: learning rate of s; far above the code's 0.01 to 0.1, which is for 200 passes over a training set.
        shared: one s for all layers.
        potential: v_0/θ; 0 as in the paper, 0.5 for rounding to nearest, which takes far fewer steps.
        encode_image: must be off: an image of both signs has no firing rate.

    Raises:
        ValueError: a value outside its range; the message names it.

    Source: Ding et al. 2021, arXiv 2105.11654, and its released code. They differ in the teacher of stage 2, where we
    follow the paper (see ``FitRates``); the code also shares one s (``shared=True``) and keeps, of the networks on the
    way of stage 2, one whose accuracy is within a tolerance, where we keep the last. A dense network is what stage 1
    leaves at the code's s = 10, which clips nothing but the maximum. Deviation: neurons stand at the inputs of layers,
    after pooling, where the paper has them at the ReLU, and maxima, which the code replaces by averages, stay: they
    are taken of the currents in front of the neuron, exactly in the layerwise schedule.

    Example:
        >>> RateNorm(timesteps=64).omega_weight
        0.1
    """

    neuron = "soft_reset_if"

    omega_weight: float = 0.1
    scale: float = 2.5
    fit_epochs: int = 10
    fit_rate: float = 2.0
    shared: bool = False
    potential: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.stages()

    def stages(self) -> tuple[Stage, ...]:
        """Stage 2: running maxima, then the fit of s; the initial potential where it is not 0."""
        from fas.stages.rate_norm import FitRates
        from fas.stages.set_potential import SetPotential

        fit = FitRates(self.scale, self.omega_weight, self.fit_epochs, self.fit_rate, shared=self.shared)
        return (fit, SetPotential(self.potential)) if self.potential else (fit,)
