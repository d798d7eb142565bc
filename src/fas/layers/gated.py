"""Functions as gated populations: a gate picks a few-spikes neuron per segment of the input."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

import torch
from torch import Tensor

from fas.layers.qcfs import floor
from fas.neurons._digits import ones

# Octaves of float32, subnormal numbers and their squares included.
_LARGEST = 300
Reduction = Literal["none", "exponent", "octave", "double_octave"]


@dataclass(frozen=True)
class Gated:
    r"""f(x) by hierarchically gated neurons: an outer gate picks a power of two, an inner one a segment.

    In segment i of N, from a + i w to a + (i+1) w, a few-spikes neuron (Stöckl and Maass 2021) sends the K
    binary digits z_1…z_K of the place u = (x − a)/w − i within it, and a spike of digit t adds d_i 2^{−t} to
    the output, which starts at c_i:

        f(x) ≈ 2^s (c_i + d_i Σ_t 2^{−t} z_t)

    Its thresholds and resets are those of the binary digits, T(t) = h(t) = w 2^{−t}. The work is that of the
    gates (comparisons), at most K spikes and K additions; 2^s is a shift.

    Outer gates (``reduction``): ``none``; ``exponent``, y = −x log2(e) = n + m for f = exp on x ≤ 0, where
    2^{−m} is fitted; ``octave``, |x| = 2^n m, 1 ≤ m < 2; ``double_octave``, x = 4^n m, 1 ≤ m < 4.

    Attributes:
        name: of the function.
        reduction: the outer gate.
        power: s = power · n.
        low: a.
        high: a + N w.
        intercepts: c_i, N of them.
        slopes: d_i, rise over a whole segment.
        left: (c, d) of c + d·x below a; none where inputs do not lie there.
        right: the same above a + N w.
        digits: K.
        max_error: largest |f̃ − f| in float64, of which ``relative`` says whether it is in parts of f. Float32 adds its
            rounding: exp reaches 5.2e-6 on [−50, 0], the others 2 % more.
        relative: see there.

    Source: LAS (arXiv 2505.09659), hierarchically gated neurons: its sub-neurons are few-spikes neurons
    with all of T(t), h(t), d(t) learned by gradient, segments and gates set by hand. Deviation: here a
    sub-neuron is affine in its segment, which has a closed form and a bound; segments of one function are
    alike in length: the inner gate reads leading digits; outer gates are powers of two: the error is relative.
    """

    name: str
    reduction: Reduction
    power: int
    low: float
    high: float
    intercepts: tuple[float, ...]
    slopes: tuple[float, ...]
    left: tuple[float, float] | None
    right: tuple[float, float] | None
    digits: int
    max_error: float
    relative: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate for x of any shape; computes in float32 at least and returns the dtype of ``x``.

        exp: nearly 0 below −80 octaves; reciprocal and square root of 0 are 0. Gradients are the slopes of
        the segments: the floor of the digits passes them straight through.
        """
        work = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.reduction == "none":
            return self._tails(work, self._segment(work)).to(x.dtype)
        size, octave = self._reduced(work)
        shifts = _powers_of_two(work.dtype, work.device)
        result = self._segment(size) * shifts[(self.power * octave + _LARGEST).clamp(0, 2 * _LARGEST)]
        if self.reduction == "exponent":
            return result.to(x.dtype)
        result = torch.where(work == 0, torch.zeros_like(result), result)
        odd = self.name in ("reciprocal", "digits")
        return (result * work.sign() if odd else result).to(x.dtype)

    def _reduced(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return m and n of the outer gate."""
        if self.reduction == "exponent":
            turned = (x.clamp(max=0) * -math.log2(math.e)).clamp(max=80.0)
            octave = turned.floor()
            return turned - octave, octave.int()
        mantissa, exponent = torch.frexp(x.abs())
        size, octave = 2 * mantissa, exponent - 1
        if self.reduction == "double_octave":
            odd = octave.remainder(2)
            size, octave = torch.ldexp(size, odd), (octave - odd) // 2
        return size, octave

    def _placed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inner segment, a whole number, and the digits of the place within it, up to 2^K."""
        many = len(self.slopes)
        along = (x - self.low) * (many / (self.high - self.low))
        index = along.floor().clamp(0, many - 1)
        return index, floor((along - index.detach()) * 2**self.digits + 0.5).clamp(0, 2**self.digits)

    def _segment(self, x: Tensor) -> Tensor:
        """Evaluate the segments; inputs outside of all are taken at the nearest end."""
        index, digits = self._placed(x)
        intercepts, slopes = self._tables(x.dtype, x.device)
        # NaN stays NaN through its digits; it must not pick a segment.
        which = index.nan_to_num(0).int()
        return torch.addcmul(intercepts[which], slopes[which], digits)

    def _tails(self, x: Tensor, inside: Tensor) -> Tensor:
        if self.left is not None:
            inside = torch.where(x < self.low, self.left[0] + self.left[1] * x, inside)
        if self.right is not None:
            inside = torch.where(x > self.high, self.right[0] + self.right[1] * x, inside)
        return inside

    def spikes(self, x: Tensor) -> Tensor:
        """Return the spikes that each input costs: ones among its digits, gates apart."""
        digits = self._placed(x if self.reduction == "none" else self._reduced(x)[0])[1]
        return ones(digits, self.digits + 1)

    @functools.lru_cache(maxsize=8)  # noqa: B019 — a frozen value, one per function
    def _tables(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return c_i and d_i 2^{−K}."""
        intercepts = torch.tensor(self.intercepts, dtype=dtype, device=device)
        return intercepts, torch.tensor(self.slopes, dtype=dtype, device=device) / 2**self.digits


@functools.lru_cache(maxsize=8)
def _powers_of_two(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return 2^n for n from −_LARGEST to _LARGEST; a gather costs less than a power."""
    octaves = torch.arange(-_LARGEST, _LARGEST + 1, device=device)
    return torch.ldexp(torch.ones(len(octaves), dtype=torch.float64, device=device), octaves).to(dtype)


DIGITS = Gated("digits", "octave", 1, 1.0, 2.0, (1.0,), (1.0,), None, None, 16, 2.0**-17, True)
"""f(x) = x in 16 binary digits after the leading one, an outer gate for the power of two.

Its spikes drive a product x · y without any multiplication: the spike of digit t adds y, shifted by t and the octave of
x, to the result. The result is rounded x times y, which is how it is computed here.
"""


# Read at once, since a compiled graph can read no file.
_TABLES: dict[str, Any] = json.loads(files("fas").joinpath("assets/gated.json").read_text(encoding="utf-8"))
_FITTED = {
    name: Gated(name, **dict[str, Any]((key, tuple(v) if isinstance(v, list) else v) for key, v in fitted.items()))
    for name, fitted in _TABLES["functions"].items()
}


def gated(name: str) -> Gated:
    """Return a fitted function by name: exp, reciprocal, square_root, square, gelu, gelu_tanh, silu, tanh.

    Raises:
        ValueError: unknown name.

    Example:
        >>> import torch
        >>> gated("square")(torch.tensor([3.0, -0.5]))
        tensor([9.0000, 0.2500])
    """
    if name not in _FITTED:
        raise ValueError(f"no gated function {name!r}; there are {', '.join(_FITTED)}")
    return _FITTED[name]
