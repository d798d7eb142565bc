"""FAS as its paper's released code has it: QCFS in the MLPs, then IF neurons step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fas.methods import RateCoded
from fas.types import Coverage, Granularity, Neuron, Operators, Site, Stage

if TYPE_CHECKING:
    from fas.stages.align_paper import AlignPaper


@dataclass(frozen=True, kw_only=True)
class FASPaper(RateCoded):
    """The network of the FAS paper: IF neurons in the place of the activations of MLPs and of BERT's pooler.

    Every time step of a sample is a row of the batch, attention and normalisation see the values of single steps, and
    the answer is the mean of the logits. Train the quantised network first (``fas finetune``): GELU is replaced. The
    losses (``fas calibrate --losses``) are those of the paper, by its surrogate gradient.

    Attributes:
        granularity: one threshold and initial potential per ``channel``, or per ``tensor`` as before fine calibration.

    Raises:
        ValueError: a value outside its range; the message names it.
        SiteError: coverage ``linear`` where inputs take both signs.

    Source: Chen et al. 2025, arXiv 2502.04405, and its released code, whose layers it equals to rounding (a test holds
    it to a re-statement of them). Deviations: thresholds start from calibration data and not from a constant; the code
    has no coarse search but multiplies thresholds by 0.6 and adds 0.2 to initial potentials (GPT-2); fine calibration
    has parameters per channel and not per token position, so that sequences have any length; θ is learned as ln θ;
    the quantised network passes gradients where the floor lies within the clip range, half a level beyond the code's
    [0, θ]; masked positions do not count in the losses; of the training the best moment on held-out batches is kept. A
    pooler without a linear layer after it keeps its activation.

    Example:
        >>> FASPaper(timesteps=4).operators
        'instant'
    """

    neuron = "soft_reset_if"

    timesteps: int = 8
    coverage: Coverage = "mlp"
    granularity: Granularity = "channel"
    operators: Operators = "instant"
    replace_activation: bool = True

    def _sites(self, model: Any, probe: Mapping[str, Any] | None) -> list[Site]:
        from fas.surgery.sites import find_sites

        return find_sites(
            model, self.coverage, exclude=self.exclude, replace_activation=self.replace_activation, heads=True,
            probe=probe,
        )  # fmt: skip

    def build(self, site: Site) -> Neuron:
        """Return the IF neuron with the surrogate gradient of the code."""
        from fas.neurons.soft_reset_if import SoftResetIF

        super().build(site)
        return SoftResetIF(gamma=1.0)

    def stages(self) -> tuple[Stage, ...]:
        """Thresholds of the smallest squared error, v_0 = θ/2: where stage 1 starts."""
        from fas.stages.set_thresholds import SetThresholds

        return (SetThresholds(rule="error"),)

    def losses(self, seed: int = 0) -> AlignPaper:
        """Return the end of fine calibration: the losses of the paper."""
        from fas.stages.align_paper import AlignPaper

        return AlignPaper(seed=seed)
