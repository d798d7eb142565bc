"""LAS: loss-less conversion to a fully spike-driven network, without training."""

from __future__ import annotations

from dataclasses import dataclass

from fas.methods.fas import FAS
from fas.types import Coverage, Neuron


@dataclass(frozen=True, kw_only=True)
class LAS(FAS):
    """Outlier-aware neurons at every site and gated populations for every non-linear operator.

    The fields of FAS with other defaults; layerwise only, since a digit is known when all input is.

    Attributes:
        timesteps: T; the code has 2^T levels in the normal range and nearly as many beyond it.
        coverage: ``full`` as in the paper; ``linear`` and ``mlp`` leave attention dense.
        neuron: ``outlier_aware``, or ``phase`` for one range.
        gated: softmax, normalisation, activations by gated populations; off, exact functions of what spikes carry.
        centred: codes centred on other values than zero, which the paper does not have.

    Source: Chen et al. 2025, arXiv 2505.09659, and its released code. Deviations: those of ``OutlierAware``
    and ``Gated``; thresholds come from calibration data and not by hand; attention weights are coded before
    they are divided by their sum; in a product of two changing values (gate and up projection, normalisation,
    division by the sum) the digits of one select shifted copies of the other, where the code takes the difference
    of products at every step, whose sum over the window it is. The released code computes the outlier-aware neuron
    in closed form under its flag ``fast``, as ``execution="collapsed"`` does here.

    Example:
        >>> LAS().timesteps
        16
    """

    timesteps: int = 16
    coverage: Coverage = "full"
    neuron: str | Neuron | type[Neuron] = "outlier_aware"  # type: ignore[misc]
    gated: bool = True
    centred: bool = False
