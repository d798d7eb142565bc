"""Every backend against the plain loops: neurons to the last bit, products to rounding."""

import importlib
import math
import os
import subprocess
import sys
from array import array
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import generator
from neuron_variants import codes

from fas.kernels import cpu, naive, torch_
from fas.kernels.interface.code import Code
from fas.neurons.outlier_aware import OutlierAware
from fas.neurons.signed_if import SignedIF
from fas.types import RateNeuron

# Those whose first steps are a burst need more of them than are drawn here; contracts/test_kernels.py has them.
CODES = [neuron for neuron in codes() if not getattr(neuron, "burst", 0)]
NEURONS = [neuron for neuron in CODES if isinstance(neuron, RateNeuron)]
PHASES = [neuron for neuron in CODES if neuron.emission == "digits"]
# Codes whose spikes are bits: not the graded ones, nor those whose digits weigh what a gate says.
BITS = [neuron for neuron in CODES if neuron.emission != "graded" and not isinstance(neuron, OutlierAware)]

able, why = cpu.supports("encode", torch.device("cpu"), torch.float32)
fast = [torch_, pytest.param(cpu, marks=pytest.mark.skipif(not able, reason=why))]
backends = pytest.mark.parametrize("kernels", fast, ids=["torch", "cpu"])
# Side by side where the loops take longest.
FAST = [torch_, cpu] if able else [torch_]
dtypes = st.sampled_from([torch.float32, torch.float64])
seeds = st.integers(0, 2**32 - 1)
# Beyond 10 steps, 16 bits do not hold the counts of balanced ternary, and no kernel knows them.
timesteps = st.integers(1, 10)
shapes = st.sampled_from([(7,), (3, 1), (2, 3, 7), (2, 33), (2, 51), (0, 7), (2, 0, 7)])
few = settings(max_examples=settings.default.max_examples // 12)


def code_of(neuron, steps: int, channels: int, dtype: torch.dtype, seed: int) -> Code:
    theta, v_init, offset = torch.rand(3, channels, generator=generator(seed), dtype=torch.float64)
    return Code.of(neuron, steps, (0.3 + 2 * theta).to(dtype), v_init.to(dtype), (offset - 0.5).to(dtype))


def normal(seed: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=generator(seed + 1), dtype=torch.float64).to(dtype)


def test_the_loops_are_the_formula_of_the_code():
    code = code_of(SignedIF(), 5, 3, torch.float64, 0)
    x = normal(0, 4, 3, dtype=torch.float64)
    for value, count, c in ((x[i, c], naive.counts(x, code)[i, c], c) for i in range(4) for c in range(3)):
        drive = (value.item() - code.offset[c].item()) * 5 / code.threshold[c].item() + code.v_init[c].item()
        assert count.item() == max(-5, min(5, math.floor(drive)))


@pytest.mark.parametrize("neuron", NEURONS)
@few
@given(seed=seeds, steps=timesteps)
def test_the_loop_over_time_is_the_neuron_of_the_definition(neuron, seed, steps):
    code = code_of(neuron, steps, 4, torch.float64, seed)
    x = normal(seed, steps, 2, 4, dtype=torch.float64)
    potential, count = (code.v_init * code.threshold).expand(2, 4), torch.zeros(2, 4, dtype=torch.float64)
    for t in range(steps):
        spikes, potential = neuron.step(x[t] - code.offset, potential, count, code.threshold, steps)
        count = count + spikes
    _, _, last = naive.scan(x, code, first=1, difference=False)
    assert torch.equal(last, count)


@pytest.mark.parametrize("neuron", [*NEURONS, *PHASES])
@few
@given(seed=seeds, steps=timesteps)
def test_the_window_for_even_input_is_that_of_the_neuron(neuron, seed, steps):
    code = code_of(neuron, steps, 4, torch.float64, seed)
    x = normal(seed, 4, dtype=torch.float64)
    expected = neuron.window((x - code.offset) / code.threshold, code.v_init, steps)
    got = [naive.window(x[c], code.map(lambda p, c=c: p[c])) for c in range(4)]
    assert torch.equal(torch.tensor(got, dtype=torch.float64).T, expected)


@pytest.mark.parametrize("neuron", [*NEURONS, *PHASES])
@few
@given(seed=seeds, steps=timesteps, shape=shapes, dtype=dtypes)
def test_even_input(neuron, seed, steps, shape, dtype):
    code, x = code_of(neuron, steps, shape[-1], dtype, seed), normal(seed, *shape, dtype=dtype)
    gain = torch.ones(*shape[:-1], 1, dtype=dtype)
    counts = naive.counts(x, code, gain=gain)
    fired = neuron.spikes(counts.to(torch.float64), steps).reshape(-1, shape[-1]).sum(0).long()
    for op in ("encode", "counts", "emit"):
        looped = torch.zeros(shape[-1], dtype=torch.int64)
        expected = getattr(naive, op)(x, code, looped)
        assert torch.equal(looped, fired), op
        for kernels in FAST:
            got = getattr(kernels, op)(x, code)
            assert got.dtype == expected.dtype and torch.equal(got, expected), op
            # Spikes by channel come on top of those that were there, and change no answer.
            sent, before = torch.arange(shape[-1]), torch.arange(shape[-1])
            assert torch.equal(getattr(kernels, op)(x, code, sent), expected), op
            assert torch.equal(sent - before, fired), op
    for kernels in FAST:
        assert torch.equal(kernels.decode(counts, code, dtype, gain), kernels.encode(x, code))


@pytest.mark.parametrize("neuron", BITS)
@few
@given(seed=seeds, steps=timesteps, shape=shapes, dtype=dtypes)
def test_spikes_in_bits(neuron, seed, steps, shape, dtype):
    code, x = code_of(neuron, steps, shape[-1], dtype, seed), normal(seed, *shape, dtype=dtype)
    bits, counts = naive.pack(x, code), naive.counts(x, code)
    assert bits.shape[0] in ((2,) if neuron.signed else (1, 2)) and bits.shape[1:] == (-(-steps // 8), *shape)
    # As many bits are set as spikes are sent, and they carry the count of the collapsed execution.
    ones = sum(int((bits >> bit & 1).sum()) for bit in range(8))
    assert ones == neuron.spikes(counts.to(dtype), steps).sum()
    by_channel = sum((bits >> bit & 1).long().reshape(-1, shape[-1]).sum(0) for bit in range(8))
    for kernels in (*FAST, naive):
        assert kernels is naive or torch.equal(kernels.pack(x, code), bits)
        assert torch.equal(kernels.unpack(bits, code), counts)
        sent = torch.zeros(shape[-1], dtype=torch.int64)
        assert torch.equal(kernels.unpack(bits, code, sent), counts)
        assert torch.equal(sent, by_channel)


@pytest.mark.parametrize("neuron", NEURONS)
@few
@given(seed=seeds, steps=timesteps, shape=shapes, dtype=dtypes, difference=st.booleans(), carried=st.booleans())
def test_uneven_input(neuron, seed, steps, shape, dtype, difference, carried):
    code, x = code_of(neuron, steps, shape[-1], dtype, seed), normal(seed, steps, *shape, dtype=dtype)
    how = {"first": 3, "difference": difference}
    if carried:
        total = normal(seed + 1, *shape, dtype=dtype)
        how["state"] = (total, total.round().clamp(code.lower, code.upper))
        kept = [value.clone() for value in how["state"]]
    # The spikes themselves are a byte each; graded ones fit as long as counts do.
    expected, looped = {}, {}
    for op in ("scan", "spikes"):
        looped[op] = torch.zeros(shape[-1], dtype=torch.int64)
        expected[op] = getattr(naive, op)(x, code, **how, sent=looped[op])
    spikes = expected["spikes"][0]
    # Counted on the way: the loop's number, and |s| summed.
    by_channel = spikes.long().abs().reshape(-1, shape[-1]).sum(0)
    assert spikes.dtype == torch.int8 and all(torch.equal(sent, by_channel) for sent in looped.values())
    if not difference:
        assert torch.equal(spikes.to(dtype) * code.threshold + code.offset, expected["scan"][0])
    for kernels in FAST:
        for op in ("scan", "spikes"):
            got = getattr(kernels, op)(x, code, **how)
            assert got[0].dtype == expected[op][0].dtype and all(map(torch.equal, got, expected[op])), op
            sent = torch.zeros(shape[-1], dtype=torch.int64)
            assert torch.equal(getattr(kernels, op)(x, code, **how, sent=sent)[0], got[0]), op
            assert torch.equal(sent, by_channel), op
    if carried:
        assert all(map(torch.equal, how["state"], kept))


@backends
@pytest.mark.parametrize("neuron", [*NEURONS, *PHASES])
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_ties_fire_in_every_backend(kernels, neuron, steps):
    # Sixteenths with θ = 1, μ = 1/4, v_0 = 1/2: a tie at every second input where the levels are a power of two.
    one = torch.ones(7)
    code = Code.of(neuron, steps, one, one / 2, one / 4)
    x = (torch.arange(-35, 35) / 16 + 0.25).view(10, 7)
    assert torch.equal(kernels.counts(x, code), naive.counts(x, code))
    assert torch.equal(kernels.emit(x, code), naive.emit(x, code))


@backends
def test_rows_that_are_not_contiguous(kernels):
    code = code_of(SignedIF(), 4, 7, torch.float32, 0)
    x = normal(0, 5, 7, 3, dtype=torch.float32).movedim(1, -1)
    assert torch.equal(kernels.encode(x, code), naive.encode(x, code))
    y = normal(0, 3, 7, 4, dtype=torch.float32).permute(2, 0, 1)
    assert torch.equal(
        kernels.scan(y, code, first=1, difference=True)[0], naive.scan(y, code, first=1, difference=True)[0]
    )


@backends
def test_saturation_and_values_that_are_no_numbers(kernels):
    code = code_of(SignedIF(), 8, 4, torch.float32, 0)
    x = torch.tensor([[math.inf, -math.inf, 1e30, -1e30]])
    assert kernels.counts(x, code).tolist() == [[8, -8, 8, -8]]


@backends
@pytest.mark.parametrize("rows", [0, 1, 2, 4, 5])
@pytest.mark.parametrize(("inner", "outer"), [(1, 1), (7, 5), (67, 130)])
def test_products(kernels, rows, inner, outer):
    x, weight, bias = torch.randn(rows, inner), torch.randn(outer, inner), torch.randn(outer)
    # Sums of up to 67 products of size 1 in float32, in another order.
    expected = naive.linear(x, weight, bias)
    torch.testing.assert_close(kernels.linear(x, weight, bias), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(naive.linear(x.unsqueeze(1), weight, bias), expected.unsqueeze(1))


@backends
@pytest.mark.parametrize("fired", [0, 1, 8, 13, 67])
def test_spikes_select_rows_of_the_weight(kernels, fired):
    counts, unit = torch.zeros(67, dtype=torch.int16), torch.rand(67)
    counts[torch.randperm(67)[:fired]] = torch.randint(1, 9, (fired,), dtype=torch.int16)
    weight, bias = torch.randn(67, 1000), torch.randn(1000)
    # What no spike selects is not even read: it may be anything.
    weight[counts == 0] = math.nan
    got = kernels.event_linear(counts, unit, weight, bias)
    # Sums of up to 67 products of size 10 in float32, in another order.
    torch.testing.assert_close(got, naive.event_linear(counts, unit, weight, bias), rtol=1e-5, atol=1e-4)


@backends
@pytest.mark.parametrize("across", [False, True], ids=["out first", "in first"])
@pytest.mark.parametrize("difference", [False, True])
@pytest.mark.parametrize(
    ("steps", "shape"), [(1, (7,)), (3, (2, 1)), (2, (3, 24)), (4, (2, 2, 25)), (2, (33, 67)), (2, (0, 7))]
)
@pytest.mark.parametrize("outer", [1, 64, 70])
def test_products_of_spikes(kernels, steps, shape, outer, across, difference):
    inner = shape[-1]
    spikes = torch.randint(-1, 2, (steps, *shape), dtype=torch.int8)
    weight, threshold, bias = torch.randn(outer, inner), 0.5 + torch.rand(inner), torch.randn(outer)
    held = weight.T.contiguous().T if across else weight
    got = kernels.spike_linear(spikes, threshold, held, bias, first=2, difference=difference)
    sent = spikes.double()
    if difference:
        sent = sent.cumsum(0) / torch.arange(2, steps + 2).view(-1, *[1] * len(shape))
    exact = torch.nn.functional.linear(sent * threshold.double(), weight.double(), bias.double())
    assert got.shape == (steps, *shape[:-1], outer) and got.dtype == torch.float32
    # Sums of up to 67 products of size 1 in float32, in any order.
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=2e-5)


def test_the_loop_over_spikes_is_the_definition():
    spikes = torch.tensor([[1, 0], [-1, 1], [0, 1]], dtype=torch.int8)
    threshold, weight, bias = torch.tensor([2.0, 3.0]), torch.tensor([[1.0, 10.0]]), torch.tensor([0.5])
    values = naive.spike_linear(spikes, threshold, weight, bias, first=1, difference=False)
    means = naive.spike_linear(spikes, threshold, weight, bias, first=1, difference=True)
    assert values.flatten().tolist() == [2.5, 28.5, 30.5]
    assert means.flatten().tolist() == [2.5, 15.5, 20.5]
    both = torch.stack([spikes, 0 * spikes], dim=1)
    rows = naive.spike_linear(both, threshold, weight, bias, first=1, difference=False)
    assert torch.equal(rows, torch.stack([values, bias.expand_as(values)], dim=1))


def test_the_loop_over_whole_numbers_is_the_definition():
    counts, weight = torch.tensor([[1, -2], [3, 0]], dtype=torch.int16), torch.tensor([[5, 7]], dtype=torch.int8)
    scale, rest, bias, gain = torch.tensor([0.5]), torch.tensor([1.0]), torch.tensor([0.25]), torch.tensor([2.0, 4.0])
    # Sums of −9 and 15.
    assert naive.integer_linear(counts, weight, scale, rest, None, bias, 3).flatten().tolist() == [-3.25, 8.75]
    assert naive.integer_linear(counts, weight, scale, rest, gain, bias, 3).flatten().tolist() == [-1.5, 2.375]


@backends
def test_whole_products_of_spikes_are_exact_for_every_state(kernels):
    # 24 channels of one chunk, each triple in every state, against whole numbers: no rounding is left to excuse.
    states = torch.cartesian_prod(*[torch.tensor([-1, 0, 1])] * 3)
    spikes = torch.stack([states.roll(shift, 0) for shift in range(8)], 1).flatten(1).to(torch.int8)
    weight = torch.randint(-999, 1000, (65, 24)).float()
    ones, none = torch.ones(24), torch.zeros(65)
    got = kernels.spike_linear(spikes.unsqueeze(0), ones, weight, none, first=1, difference=False)
    assert torch.equal(got[0], spikes.float() @ weight.T)


@pytest.mark.skipif(not able, reason=why)
def test_products_of_spikes_do_not_depend_on_the_threads():
    spikes = torch.randint(-1, 2, (4, 64, 100), dtype=torch.int8)
    weight, threshold, bias = torch.randn(2000, 100), torch.rand(100), torch.randn(2000)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(cpu.spike_linear(spikes, threshold, weight, bias, first=1, difference=True))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@backends
@pytest.mark.parametrize("largest", [8, 127, 255, 8191, 32767])
@pytest.mark.parametrize("rows", [0, 1, 4, 5, 20])
def test_whole_numbers_times_whole_numbers(kernels, rows, largest):
    inner, outer = 600, 5
    counts = torch.randint(-largest, largest + 1, (rows, inner), dtype=torch.int16)
    weight = torch.randint(-127, 128, (outer, inner), dtype=torch.int8)
    # The largest sum that there can be, beyond 32 bits where counts are.
    weight[0] = 127
    if rows:
        counts[0] = largest
    scale, bias = torch.rand(outer), torch.randn(outer)
    rest, gain = torch.randn(outer), 2.0 ** torch.randint(-3, 4, (rows, 1))
    got = kernels.integer_linear(counts, weight, scale, rest, gain, bias, largest)
    sums = (counts.double() @ weight.double().T) * scale.double()
    exact = (sums + rest.double()) / gain + bias.double()
    # float32 holds the sum, the scaled sum and the result with 2^-24 each; torch adds up in float32 where counts
    # do not fit into 8 bits, relative to the sum of magnitudes.
    sizes = (counts.double().abs() @ weight.double().abs().T) * scale.double() + rest.double().abs()
    magnitude = sizes / gain + bias.double().abs()
    assert bool(((got.double() - exact).abs() <= 1e-6 * magnitude).all())


@pytest.mark.skipif(not able, reason=why)
def test_many_threads_do_each_piece_once():
    code, x = code_of(SignedIF(), 8, 96, torch.float32, 0), normal(0, 5000, 96, dtype=torch.float32)
    expected, threads = torch_.encode(x, code), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(cpu.encode(x, code), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not able, reason=why)
@pytest.mark.parametrize("most", [1, 3, 2**31 - 1])
def test_many_threads_count_spikes_together(monkeypatch, most):
    # More rows than sums in 32 bits are said to hold, so that threads hand them on in between.
    monkeypatch.setattr(cpu, "_tally", lambda sent, largest: (0 if sent is None else sent.data_ptr(), most))
    code, x = code_of(SignedIF(), 8, 96, torch.float32, 0), normal(0, 2, 700, 96, dtype=torch.float32)
    threads, bits = torch.get_num_threads(), cpu.pack(x, code)
    uneven = {"first": 1, "difference": True}
    spikes = cpu.spikes(x, code, **uneven)[0].long().abs().flatten(0, 1).sum(0)
    even = cpu.counts(x, code).long().abs().flatten(0, 1).sum(0)
    calls = {
        "encode": (x, even), "counts": (x, even), "emit": (x, even), "unpack": (bits, even), "spikes": (x, spikes),
        "scan": (x, spikes),
    }  # fmt: skip
    try:
        torch.set_num_threads(3)
        for op, (given_to, expected) in calls.items():
            sent = torch.zeros(96, dtype=torch.int64)
            getattr(cpu, op)(given_to, code, sent=sent, **(uneven if expected is spikes else {}))
            assert torch.equal(sent, expected), op
    finally:
        torch.set_num_threads(threads)


TRITON = """
import torch, sys
sys.path.insert(0, {tests!r})
from kernels.test_kernels import NEURONS, PHASES, code_of, normal
from fas.kernels import naive, triton_

def held(op, *arguments, channels, **named):
    # The answer, the same with and without spikes counted, and their number by channel.
    alone, sent = op(*arguments, **named), torch.arange(channels)
    beside = op(*arguments, **named, sent=sent)
    several = isinstance(alone, tuple)
    assert all(map(torch.equal, alone, beside)) if several else torch.equal(alone, beside)
    return (*(alone if several else (alone,)), sent)

# One tile, partly filled, and several.
for steps, rows, channels in ((1, 2, 7), (3, 2, 7), (8, 2, 7), (2, 17, 65)):
    for neuron in [*NEURONS, *PHASES]:
        code = code_of(neuron, steps, channels, torch.float32, steps)
        x = normal(0, steps, rows, channels, dtype=torch.float32)
        for op in ("encode", "counts"):
            ours, theirs = (held(getattr(k, op), x[0], code, channels=channels) for k in (triton_, naive))
            assert all(map(torch.equal, ours, theirs)), (neuron, op)
        for difference in (True, False) if neuron in NEURONS else ():
            # Eighths: sums in float32 and in float64 are the same.
            eighths, named = (8 * x).round() / 8, {{"first": 2, "difference": difference, "channels": channels}}
            ours, theirs = (held(k.scan, eighths, code, **named) for k in (triton_, naive))
            assert all(map(torch.equal, ours, theirs)), (neuron, difference)
print("equal")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed; it comes with torch for CUDA")
def test_triton_in_its_interpreter():
    # Triton reads the variable when its kernels are defined: a process of its own.
    script = TRITON.format(tests=str(Path(__file__).resolve().parents[1]))
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"}
    )
    assert run.stdout.strip() == "equal", run.stderr


@pytest.mark.skipif(not able, reason=why)
def test_a_change_in_what_a_kernel_calls_is_no_old_kernel_of_the_cache(tmp_path, monkeypatch):
    from fas.kernels.native import calling

    monkeypatch.syspath_prepend(tmp_path)
    # Python tells its own compiled files apart by the second.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    lines = ["from fas.kernels.native.calling import native, words", "from told import told", "@native"]
    lines += ["def kernel(work):", "    words(work, 2)[1] = told()"]
    (tmp_path / "asks.py").write_text("\n".join(lines))
    for number, known in ((7, 0), (8, 0), (8, 1)):
        (tmp_path / "told.py").write_text(f"from numba import njit\nnumber = {number}\ntold = njit(lambda: number)\n")
        calling._sources.cache_clear()
        importlib.invalidate_caches()
        for name in ("asks", "told"):
            sys.modules.pop(name, None)
        kernel, work = importlib.import_module("asks").kernel, array("q", (0, 0))
        kernel.ctypes(work.buffer_info()[0])
        assert (work[1], kernel.cache_hits) == (number, known)


@pytest.mark.skipif(not able, reason=why)
def test_large_answers_are_the_same_in_large_pages(monkeypatch):
    from fas.kernels.native import calling

    code, x = code_of(SignedIF(), 8, 512, torch.float32, 0), normal(0, 3000, 512, dtype=torch.float32)
    asked = []
    system = type("System", (), {"madvise": lambda self, *region: asked.append(region)})
    monkeypatch.setattr(calling, "_system", system)
    out = cpu.emit(x, code)
    assert torch.equal(out, torch_.emit(x, code))
    if sys.platform == "linux":
        ((begin, size, _),) = asked
        assert begin % 2**21 == size % 2**21 == 0
        assert out.data_ptr() <= begin and begin + size <= out.data_ptr() + out.nbytes
