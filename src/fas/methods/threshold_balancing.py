"""Threshold balancing: the threshold of a layer is its largest activation, or nearly so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fas.checks import check_choice
from fas.methods import RateCoded
from fas.types import Stage


@dataclass(frozen=True, kw_only=True)
class ThresholdBalancing(RateCoded):
    """IF neurons with soft reset, one threshold per layer from the activations of the dense network.

    Attributes:
        rule: ``maximum`` of the activation, or a ``percentile`` of it.
        percentile: in percent, for the rule of that name.
        potential: v_0/θ; 0 as in the papers, 0.5 for rounding to nearest.

    Raises:
        ValueError: a value outside its range; the message names it.

    Source: Diehl et al. 2015 (maximum, and weights divided by it instead of thresholds, which is the same network
    in other units); Rueckauer et al. 2017, percentile 99.9 and soft reset; Sengupta et al. 2019 balance thresholds.
    Deviation: the maximum is that of the ANN's activation; Sengupta et al. take it from the spiking network's
    currents, layer by layer. Neurons stand at the inputs of layers, after pooling, where the papers have them at the
    ReLU; maxima are taken of currents, where the papers average or gate spikes by rate. The released code of
    Rueckauer et al. leaves zeros out of the percentile; here they count.

    Example:
        >>> ThresholdBalancing(rule="percentile").percentile
        99.9
    """

    neuron = "soft_reset_if"

    rule: Literal["maximum", "percentile"] = "maximum"
    percentile: float = 99.9
    potential: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("rule", self.rule, ("maximum", "percentile"))
        self.stages()

    def stages(self) -> tuple[Stage, ...]:
        """Thresholds from the dense network's activations, then the initial potential."""
        from fas.stages.set_potential import SetPotential
        from fas.stages.set_thresholds import SetThresholds

        return SetThresholds(rule=self.rule, percentile=self.percentile), SetPotential(self.potential)
