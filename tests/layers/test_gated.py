"""Gated functions: their error everywhere, a plain loop over gates and digits, and the script that fits them."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch

from fas.layers.gated import DIGITS, gated

NAMES = ["exp", "reciprocal", "square_root", "square", "gelu", "gelu_tanh", "silu", "tanh"]
EXACT = {
    "exp": torch.exp,
    "reciprocal": torch.reciprocal,
    "square_root": torch.sqrt,
    "square": torch.square,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
}


def inputs(name, count=200_001):
    wide = torch.linspace(-30, 30, count, dtype=torch.float64)
    if name == "exp":
        return torch.linspace(-50, 0, count, dtype=torch.float64)
    if name in ("reciprocal", "square"):
        return torch.cat([-wide.exp(), wide.exp()])
    return wide.exp() if name == "square_root" else wide


def error(name, x):
    exact = EXACT[name](x.double())
    found = gated(name)(x).double()
    return (found - exact).abs() / (exact.abs() if gated(name).relative else 1)


def test_all_functions_are_there():
    assert [gated(name).name for name in NAMES] == NAMES
    with pytest.raises(ValueError, match="no gated function 'sine'; there are exp, reciprocal"):
        gated("sine")


@pytest.mark.parametrize("name", NAMES)
def test_the_error_stated_holds(name):
    function = gated(name)
    assert 0 < function.max_error < 5e-5
    largest = float(error(name, inputs(name)).max())
    # Stated with three digits, on other points.
    assert 0.9 * function.max_error < largest < 1.01 * function.max_error
    # Float32 rounds the exponent of exp by up to 50 · log2(e) · 6e-8 of an octave, other values by a few 6e-8.
    assert float(error(name, inputs(name).float()).max()) < (5.3e-6 if name == "exp" else 1.02 * function.max_error)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_gates_and_digits(name):
    function = gated(name)
    for x in inputs(name, 41).tolist():
        outer, inner = 0, x
        if function.reduction == "exponent":
            outer = math.floor(-x / math.log(2))
            inner = -x / math.log(2) - outer
        elif function.reduction != "none":
            base = 4 if function.reduction == "double_octave" else 2
            inner = abs(x)
            while inner >= base:
                inner, outer = inner / base, outer + 1
            while inner < 1:
                inner, outer = inner * base, outer - 1
        if inner < function.low or inner > function.high:
            start, rise = function.left if inner < function.low else function.right
            expected, fired = start + rise * x, None
        else:
            width = (function.high - function.low) / len(function.slopes)
            segment = min(int((inner - function.low) / width), len(function.slopes) - 1)
            # A few-spikes neuron: thresholds and resets of the binary digits, half a digit rounded up.
            potential = (inner - function.low) / width - segment + 2.0 ** -(function.digits + 1)
            value, fired = function.intercepts[segment], 0
            for t in range(function.digits + 1):
                if potential >= 2.0**-t:
                    potential -= 2.0**-t
                    value += function.slopes[segment] * 2.0**-t
                    fired += 1
            expected = value * 2.0 ** (function.power * outer)
            if function.name == "reciprocal" and x < 0:
                expected = -expected
        found = float(function(torch.tensor(x, dtype=torch.float64)))
        # Float64; where a place lies within rounding of half a digit, one digit of 2^-16 of a segment.
        tolerance = 1e-9 + abs(function.slopes[0]) * 2.0**-function.digits * 2.0 ** (function.power * outer)
        assert math.isclose(found, expected, rel_tol=1e-9, abs_tol=tolerance), x
        if fired is not None and abs(found - expected) <= 1e-9 * max(1, abs(expected)):
            assert float(function.spikes(torch.tensor(x, dtype=torch.float64))) == fired <= function.digits


def test_ends():
    x = torch.tensor([-math.inf, -1e4, 0.0])
    assert gated("exp")(x)[:2].abs().max() < 1e-20 and gated("exp")(x)[2] == pytest.approx(1, rel=2e-6)
    for name in ("reciprocal", "square_root", "square"):
        assert float(gated(name)(torch.zeros(1))) == 0
    assert gated("gelu")(torch.tensor([-1e4, 1e4])).tolist() == [0.0, 1e4]
    assert gated("tanh")(torch.tensor([-1e4, 1e4])).tolist() == [-1.0, 1.0]
    assert gated("silu")(torch.zeros(0, 3)).shape == (0, 3)
    assert all(bool(gated(name)(torch.tensor([torch.nan])).isnan()) for name in NAMES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_computed_in_float32(name, dtype):
    x = -torch.rand(100).to(dtype) if name == "exp" else torch.rand(100).to(dtype) + 0.5
    assert gated(name)(x).dtype == dtype
    assert torch.equal(gated(name)(x), gated(name)(x.float()).to(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_slopes(name):
    x = torch.tensor([-0.7] if name == "exp" else [0.7], dtype=torch.float64, requires_grad=True)
    exact = x.detach().clone().requires_grad_()
    gated(name)(x).backward()
    EXACT[name](exact).backward()
    # The slope of a segment of 1/32, or of an octave's 128th part.
    torch.testing.assert_close(x.grad, exact.grad, rtol=0.02, atol=0)


def test_the_table_is_what_the_script_fits(tmp_path):
    path = Path(__file__).resolve().parents[2] / "tools" / "fit_gated.py"
    spec = importlib.util.spec_from_file_location("fit_gated", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    table = json.loads(script.ASSET.read_text(encoding="utf-8"))
    assert list(table["functions"]) == list(script.FUNCTIONS) == NAMES
    settings = table["settings"]
    fitted = script.fit(script.FUNCTIONS["reciprocal"], settings["segments"], settings["digits"])
    assert json.loads(json.dumps(fitted)) == table["functions"]["reciprocal"]


def test_a_product_of_digits_is_a_sum_of_shifted_copies():
    xs, ys = torch.randn(2, 300, dtype=torch.float64) * torch.logspace(-6, 6, 300, dtype=torch.float64)
    xs[:4] = torch.tensor([0.0, 1.0, -4.0, 1 - 2.0**-30])
    found, fired = DIGITS(xs) * ys, DIGITS.spikes(xs)
    for x, y, product, spikes in zip(xs.tolist(), ys.tolist(), found.tolist(), fired.tolist(), strict=True):
        mantissa, octave = math.frexp(abs(x))
        rest = round((2 * mantissa - 1) * 2**16)
        digits = [rest >> lower & 1 for lower in range(16, -1, -1)] if x else []
        # The leading one, then a copy of y for every spike, shifted by its step and the octave; nothing for zero.
        copies = [y * 2.0 ** (octave - 1)] + [y * 2.0 ** (octave - 1 - t) for t, digit in enumerate(digits) if digit]
        expected = math.copysign(math.fsum(copies), x * y) if x else 0.0
        # The sum is exact, the product rounds once in float64.
        assert product == pytest.approx(expected, rel=4e-16) and spikes == sum(digits)
        assert abs(product - x * y) <= 1.0001 * DIGITS.max_error * abs(x * y)
