"""FAS: fast ANN-SNN conversion of transformers by coarse-to-fine calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fas import registry
from fas.methods._rate_coded import OneNeuron, chosen_neuron, neuron_as_json
from fas.types import Neuron, Stage

if TYPE_CHECKING:
    from fas.stages.calibrate import Calibrate


@dataclass(frozen=True, kw_only=True)
class FAS(OneNeuron):
    """Spiking neurons at the inputs of linear layers, calibrated coarse per layer and fine per channel.

    Attributes:
        coverage: ``mlp`` (the layer after every MLP activation, the scope of the paper's code), ``linear``
            (the input of every linear layer) or ``full`` (query, key, value and attention weights too).
        neuron: digit codes, layerwise only: ``adaptive_digit`` (the default: signed digits at thresholds that follow
            the size of each token, as real models need), ``signed_digit`` (the same thresholds for all tokens),
            ``ternary_phase`` (3^T levels), ``phase`` (bit planes, 2^T and a sign), ``outlier_aware`` (bit planes in two
            ranges). Rate codes, with T + 1 levels or 2T + 1 where values take both signs: ``signed_if`` (spikes of both
            signs, one a step), ``clipped_count`` (graded spikes; exact online too), ``soft_reset_if`` (binary spikes;
            every site must be non-negative). Fields after colons: `adaptive_digit:least=1`. Or an object or class.
        gated: softmax, normalisation and activations by gated populations instead of exact functions.
        rotate: turn the residual stream before calibration, which spreads outliers over its channels.
        coarse: calibrate one threshold per layer.
        fine: calibrate threshold, offset and initial potential per channel, and the bias.
        centred: let fine calibration centre signed codes: all levels serve, but silence is lost where most
            values are near zero. Off, spikes are several times fewer and the error larger.
        spike_price: nats per answer that one spike per neuron and window may cost: fine calibration trades quality for
            silence, channel by channel (0.01 to 0.1 are useful), and `centred` has no say. If not given, the neuron's
            own for language models: 0.006 for `adaptive_digit`, and for `signed_digit` from T = 7 on, else 0.
        spikes: per neuron and window, in the mean over the network: finds the price at which it sends as many.

    Raises:
        ValueError: a value outside its range; the message names it.

    Source: Chen et al. 2025, arXiv 2502.04405. Deviation: activations of both signs keep their function and
    are coded by signed neurons, so that a model works without fine-tuning; ``FASPaper`` is the paper's network.

    Example:
        >>> FAS(timesteps=4, coverage="mlp").timesteps
        4
    """

    _remedy = "choose neuron='signed_if', or coverage='mlp' with replace_activation=True and fine-tune"

    neuron: str | Neuron | type[Neuron] = "adaptive_digit"  # type: ignore[misc]
    gated: bool = False
    rotate: bool = False
    coarse: bool = True
    fine: bool = True
    centred: bool = True
    spike_price: float | None = None
    spikes: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._calibration()
        object.__setattr__(self, "neuron", chosen_neuron(self.neuron))
        neuron = registry.load("neurons", self.neuron) if isinstance(self.neuron, str) else self.neuron
        if self.schedule == "online" and neuron.emission == "digits":
            raise ValueError(
                f"schedule is 'online', but neuron {self.neuron!r} fires after its whole input: choose "
                "neuron='clipped_count' or 'signed_if', or schedule='layerwise'"
            )

    def stages(self) -> tuple[Stage, ...]:
        """Thresholds by maximum where nothing is to be calibrated, else the two calibrations in one walk."""
        from fas.stages.rotate import Rotate
        from fas.stages.set_thresholds import SetThresholds

        first: tuple[Stage, ...] = (Rotate(),) if self.rotate else ()
        if not (self.coarse or self.fine):
            return (*first, SetThresholds(rule="maximum"))
        return (*first, self._calibration())

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON types; a neuron of one's own as ``module:class``."""
        return {**super().to_dict(), "neuron": neuron_as_json(chosen_neuron(self.neuron))}

    def _calibration(self) -> Calibrate:
        from fas.stages.calibrate import Calibrate

        names = ("coarse", "fine", "centred", "spike_price", "spikes")
        return Calibrate(**{name: getattr(self, name) for name in names})
