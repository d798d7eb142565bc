"""QCFS against a loop over scalars, and its gradients against the formulas worked out by hand."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fas.layers.qcfs import qcfs

seeds = st.integers(0, 2**32 - 1)
channels = st.sampled_from([1, 7])
# (levels, bounds): unsigned by default, signed, and an odd range.
ranges = st.one_of(
    st.integers(1, 17).map(lambda n: (n, None)),
    st.integers(1, 17).map(lambda n: (n, (-n, n))),
    st.just((5, (-2, 3))),
)
# Nearer to a decision level than this (in levels), the order of float64 operations may decide.
MARGIN = 1e-9


def draw(seed: int, n: int, c: int, *, scalar: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations [n, c] over the whole range and beyond, thresholds and shifts of shape (c,) or ()."""
    rng = torch.Generator().manual_seed(seed)
    shape = () if scalar else (c,)
    x = 6 * torch.rand(n, c, generator=rng, dtype=torch.float64) - 3
    theta = 0.2 + 2 * torch.rand(shape, generator=rng, dtype=torch.float64)
    shift = torch.rand(shape, generator=rng, dtype=torch.float64)
    return x, theta, shift


def scalars(x: torch.Tensor, *parameters: torch.Tensor):
    """Every element of x with its parameters, as Python floats and indices."""
    rows = [p.expand(x.shape[1]).tolist() for p in parameters]
    for i, row in enumerate(x.tolist()):
        for c, value in enumerate(row):
            yield (i, c, value, *(p[c] for p in rows))


@given(
    st.integers(-64, 64).map(lambda n: n / 16),
    st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    ranges,
    st.integers(0, 7).map(lambda n: n / 8),
)
def test_values_in_rational_numbers_ties_included(x, theta, levels_bounds, shift):
    # x, shift and L/θ are dyadic, so the argument of the floor is exact on both sides.
    levels, bounds = levels_bounds
    lower, upper = bounds or (0, levels)
    level = math.floor(Fraction(x) * levels / Fraction(theta) + Fraction(shift))
    count = max(lower, min(upper, level))
    value = qcfs(
        torch.tensor([x], dtype=torch.float64),
        torch.tensor(theta, dtype=torch.float64),
        levels,
        shift=shift,
        bounds=bounds,
    )
    assert value.item() == count * (theta / levels)


@given(seeds, channels, ranges, st.booleans())
def test_values_are_those_of_a_loop_over_scalars(seed, c, levels_bounds, scalar):
    levels, bounds = levels_bounds
    lower, upper = bounds or (0, levels)
    x, theta, shift = draw(seed, 5, c, scalar=scalar)
    values = qcfs(x, theta, levels, shift=shift, bounds=bounds)
    assert values.shape == x.shape and values.dtype == x.dtype
    for i, j, value, t, s in scalars(x, theta, shift):
        level = value * levels / t + s
        if abs(level - round(level)) > MARGIN:
            expected = t / levels * max(lower, min(upper, math.floor(level)))
            # Two roundings in another order.
            assert values[i, j].item() == pytest.approx(expected, rel=1e-14, abs=1e-300)


@given(seeds, channels, ranges, st.booleans())
def test_gradients_are_the_formulas_of_the_docstring(seed, c, levels_bounds, scalar):
    levels, bounds = levels_bounds
    lower, upper = bounds or (0, levels)
    x, theta, shift = (p.requires_grad_() for p in draw(seed, 5, c, scalar=scalar))
    weight = torch.randn(5, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (qcfs(x, theta, levels, shift=shift, bounds=bounds) * weight).sum().backward()

    by_x = torch.zeros_like(x.detach())
    by_theta, by_shift = [0.0] * c, [0.0] * c
    for i, j, value, t, s in scalars(x.detach(), theta.detach(), shift.detach()):
        w, level = weight[i, j].item(), math.floor(value * (levels / t) + s)
        inside, count = lower <= level <= upper, max(lower, min(upper, level))
        by_x[i, j] = w if inside else 0.0
        by_theta[j] += w * (count / levels - (value / t if inside else 0.0))
        by_shift[j] += w * (t / levels if inside else 0.0)
    # Sums of at most 35 terms of size below 20 in float64.
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(x.grad, by_x, **close)
    for parameter, expected in ((theta, by_theta), (shift, by_shift)):
        total = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(parameter.grad, total.sum() if scalar else total, **close)


@given(seeds, ranges)
def test_gradients_are_finite_differences_of_the_smooth_pieces(seed, levels_bounds):
    """With the fraction that the floor drops held fixed, q is smooth and its derivative is what we return."""
    levels, bounds = levels_bounds
    lower, upper = bounds or (0, levels)
    x, theta, shift = draw(seed, 5, 7, scalar=False)
    level = x * (levels / theta) + shift
    dropped = level - level.floor()

    def smooth(x: torch.Tensor, theta: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return theta / levels * (x * levels / theta + shift - dropped).clamp(lower, upper)

    leaves = [p.clone().requires_grad_() for p in (x, theta, shift)]
    q = qcfs(leaves[0], leaves[1], levels, shift=leaves[2], bounds=bounds)
    torch.testing.assert_close(q.detach(), smooth(x, theta, shift), rtol=1e-12, atol=1e-12)
    # Every element on its own: at either end of the range the clamp has a kink and no derivative.
    kink = (level.floor() == lower) | (level.floor() == upper)
    step = 1e-6
    for k, leaf in enumerate(leaves):
        (gradient,) = torch.autograd.grad(q.masked_fill(kink, 0).sum(), leaf, retain_graph=True)
        ahead, behind = [x, theta, shift], [x, theta, shift]
        ahead[k], behind[k] = ahead[k] + step, behind[k] - step
        slope = ((smooth(*ahead) - smooth(*behind)) / (2 * step)).masked_fill(kink, 0)
        # Central differences: truncation below step² · f''' ≈ 1e-12 · 1e3, rounding 1e-16 · 10 / step ≈ 1e-9.
        torch.testing.assert_close(gradient, slope.sum(0) if k else slope, rtol=1e-6, atol=1e-6)


def test_saturated_activations_move_with_the_threshold_alone():
    x = torch.tensor([-9.0, 9.0], requires_grad=True)
    theta = torch.tensor([1.0, 1.0], requires_grad=True)
    qcfs(x, theta, 4, bounds=(-2, 4)).sum().backward()
    assert x.grad.tolist() == [0, 0]
    assert theta.grad.tolist() == [-0.5, 1.0]


@pytest.mark.parametrize("levels", [0, -1])
def test_levels_below_one_are_refused(levels: int):
    with pytest.raises(ValueError, match=rf"levels is {levels}; a quantised activation needs at least 1"):
        qcfs(torch.zeros(1), torch.tensor(1.0), levels)


@given(seeds, ranges, st.floats(0.01, 0.99))
def test_its_own_levels_are_fixed_points(seed, levels_bounds, shift):
    # A level comes back within 1e-15 of itself, the shift keeps it 0.01 away from a decision.
    levels, bounds = levels_bounds
    x, theta, _ = draw(seed, 5, 7, scalar=False)
    once = qcfs(x, theta, levels, shift=shift, bounds=bounds)
    assert torch.equal(qcfs(once, theta, levels, shift=shift, bounds=bounds), once)


def test_its_own_levels_are_fixed_points_at_the_very_edge():
    # No shift: each level is a tie. Powers of two keep it exact.
    theta = torch.tensor([0.5, 2.0])
    once = qcfs(torch.randn(50, 2), theta, 8, shift=0.0, bounds=(-8, 8))
    assert torch.equal(qcfs(once, theta, 8, shift=0.0, bounds=(-8, 8)), once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (7,)])
def test_half_precision_keeps_its_dtype(dtype: torch.dtype, shape: tuple[int, ...]):
    # Parameters stay float32 in a half-precision model. Powers of two and eighths are exact in all of them.
    x = (torch.arange(-21, 21).view(6, 7) / 8).to(dtype)
    theta = torch.full(shape, 2.0)
    value = qcfs(x, theta, 4, bounds=(-4, 4))
    assert value.dtype == dtype
    assert torch.equal(value.float(), qcfs(x.float(), theta, 4, bounds=(-4, 4)))


def test_the_empty_batch():
    assert qcfs(torch.zeros(0, 7), torch.ones(7), 4).shape == (0, 7)
