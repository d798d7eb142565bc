"""QCFS: a network with quantised activations read as a spiking one, without calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fas.checks import check_choice
from fas.methods import RateCoded
from fas.types import Stage


@dataclass(frozen=True, kw_only=True)
class QCFSOnly(RateCoded):
    """The quantised network of L levels with learned thresholds; its neurons start at θ/2 and nothing is fitted.

    ``fas.calibrate`` sets where thresholds start from; fine-tuning the quantised network learns them, and the
    spiking network runs with the very same ones at any T. T = L is exact in the layerwise schedule.

    Attributes:
        levels: L of the quantised network that is trained.
        initial: where thresholds start: the smallest squared ``error``, the ``maximum`` or a ``percentile``.
        percentile: in percent, for the start of that name.

    Raises:
        ValueError: a value outside its range; the message names it.

    Source: Bu et al., ICLR 2022 (arXiv 2303.04347), equations 12 to 14. Deviation: thresholds start from data, where
    the released code starts from a constant (8), and are learned as ln θ, which keeps them positive; the code
    fires at v ≥ θ as here, where the paper's equation 3 has a Heaviside function whose value at 0 it leaves open.

    Example:
        >>> QCFSOnly(timesteps=8).levels
        8
    """

    neuron = "soft_reset_if"

    timesteps: int = 8
    levels: int = 8
    initial: Literal["error", "maximum", "percentile"] = "error"
    percentile: float = 99.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("initial", self.initial, ("error", "maximum", "percentile"))
        self.stages()

    def stages(self) -> tuple[Stage, ...]:
        """Where thresholds start; v_0 = θ/2."""
        from fas.stages.set_thresholds import SetThresholds

        return (SetThresholds(rule=self.initial, percentile=self.percentile),)
