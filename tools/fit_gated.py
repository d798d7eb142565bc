"""Fit the segments of the gated functions and write src/fas/assets/gated.json; prints the table of errors.

    python tools/fit_gated.py

Segments of one function are alike in length, and each piece is the best affine one in the largest error. The
error in the table is measured on points that were not fitted to, digits included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]
ASSET = Path(__file__).resolve().parents[1] / "src" / "fas" / "assets" / "gated.json"
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + _erf(x / math.sqrt(2)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


# What is fitted inside of the gate, the gate, its power, the interval, and (value, slope) beyond its ends.
FUNCTIONS: dict[str, dict[str, Any]] = {
    "exp": {"f": lambda m: 2.0**-m, "reduction": "exponent", "power": -1, "interval": (0.0, 1.0)},
    "reciprocal": {"f": lambda m: 1 / m, "reduction": "octave", "power": -1, "interval": (1.0, 2.0)},
    "square_root": {"f": np.sqrt, "reduction": "double_octave", "power": 1, "interval": (1.0, 4.0)},
    "square": {"f": np.square, "reduction": "octave", "power": 2, "interval": (1.0, 2.0)},
    "gelu": {"f": _gelu, "interval": (-8.0, 8.0), "left": (0.0, 0.0), "right": (0.0, 1.0)},
    "gelu_tanh": {"f": _gelu_tanh, "interval": (-8.0, 8.0), "left": (0.0, 0.0), "right": (0.0, 1.0)},
    "silu": {"f": lambda x: x / (1 + np.exp(-x)), "interval": (-16.0, 16.0), "left": (0.0, 0.0), "right": (0.0, 1.0)},
    "tanh": {"f": np.tanh, "interval": (-8.0, 8.0), "left": (-1.0, 0.0), "right": (1.0, 0.0)},
}


def main() -> None:
    """Fit every function."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--segments", type=int, default=128, help="of one octave")
    parser.add_argument("--per-unit", type=int, default=32, help="segments of length one of other functions")
    parser.add_argument("--digits", type=int, default=16)
    parser.add_argument("--out", type=Path, default=ASSET)
    arguments = parser.parse_args()
    fitted = {}
    for name, about in FUNCTIONS.items():
        low, high = about["interval"]
        segments = arguments.segments if "reduction" in about else round(arguments.per_unit * (high - low))
        fitted[name] = fit(about, segments, arguments.digits)
        kind = "relative" if fitted[name]["relative"] else "absolute"
        print(f"{name:12} {segments:4} segments  {arguments.digits} digits  {fitted[name]['max_error']:.2e} {kind}")
    settings = {"command": "python tools/fit_gated.py", "segments": arguments.segments,
                "per_unit": arguments.per_unit, "digits": arguments.digits}  # fmt: skip
    arguments.out.write_text(json.dumps({"settings": settings, "functions": fitted}) + "\n", encoding="utf-8")


def fit(about: dict[str, Any], segments: int, digits: int) -> dict[str, Any]:
    """Return the table of one function."""
    function: Function = about["f"]
    low, high = about["interval"]
    edges = np.linspace(low, high, segments + 1)
    intercepts, slopes = np.empty(segments), np.empty(segments)
    for i, (start, end) in enumerate(itertools.pairwise(edges)):
        intercepts[i], slopes[i] = affine(function, float(start), float(end))
    table = [[float(f"{value:.8g}") for value in column] for column in (intercepts, slopes)]
    relative = "reduction" in about
    return {
        "reduction": about.get("reduction", "none"),
        "power": about.get("power", 0),
        "low": low,
        "high": high,
        "intercepts": table[0],
        "slopes": table[1],
        "left": about.get("left"),
        "right": about.get("right"),
        "digits": digits,
        "max_error": float(f"{error(function, about, table, digits, relative=relative):.3g}"),
        "relative": relative,
    }


def affine(function: Function, low: float, high: float) -> tuple[float, float]:
    """Return value at the lower end and rise of the affine piece with the smallest largest error.

    Where f'' keeps its sign that piece is parallel to the chord, half of the largest gap away from it.
    """
    place = np.linspace(0, 1, 1025)
    values = function(low + place * (high - low))
    rise = float(values[-1] - values[0])
    gap = values - values[0] - rise * place
    return float(values[0] + (gap.max() + gap.min()) / 2), rise


def error(function: Function, about: dict[str, Any], table: list[list[float]], digits: int, *, relative: bool) -> float:
    """Return the largest error on points between those of the fit, a quarter of the interval beyond its ends too."""
    intercepts, slopes = (np.array(column) for column in table)
    low, high = about["interval"]
    beyond = 0.0 if relative else (high - low) / 4
    x = np.linspace(low - beyond, high + beyond, 1_000_003)
    if relative:
        x = x[:-1]
    along = (x - low) * len(slopes) / (high - low)
    index = np.clip(np.floor(along), 0, len(slopes) - 1).astype(int)
    place = np.clip(np.floor((along - index) * 2**digits + 0.5), 0, 2**digits) / 2**digits
    value = intercepts[index] + slopes[index] * place
    for side, outside in (("left", x < low), ("right", x > high)):
        if about.get(side) is not None:
            start, rise = about[side]
            value = np.where(outside, start + rise * x, value)
    exact = function(x)
    return float(np.max(np.abs(value - exact) / (np.abs(exact) if relative else 1.0)))


if __name__ == "__main__":
    main()
