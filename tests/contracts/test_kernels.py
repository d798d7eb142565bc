"""What every kernel must keep: its name, the signatures of the loops, and the answers of the loops for every neuron."""

import importlib
import inspect
from typing import get_args

import pytest
import torch
from neuron_variants import codes, label

from fas import registry
from fas.kernels import naive
from fas.kernels.interface.backend import Backend
from fas.kernels.interface.code import Code
from fas.kernels.interface.dispatch import choose, found
from fas.settings import Kernels
from fas.types import RateNeuron

CPU = torch.device("cpu")
OPS = [name for name, op in vars(Backend).items() if inspect.isfunction(op) and name[0] != "_" and name != "supports"]
names = registry.available("kernels")
every = pytest.mark.parametrize("name", names)


def kernel_of(name: str, op: str = "encode", dtype: torch.dtype = torch.float32):
    kernel = importlib.import_module(f"fas.kernels.{name}")
    able, why = kernel.supports(op, CPU, dtype)
    if not able:
        pytest.skip(why)
    return kernel


def test_every_file_is_a_kernel_and_every_kernel_can_be_asked_for():
    assert {kernel.name for kernel in found().values()} == set(get_args(Kernels)) - {"auto"}
    assert [name.rstrip("_") for name in names] == sorted(found())


@every
def test_operations_have_the_signature_of_the_loops(name):
    kernel = importlib.import_module(f"fas.kernels.{name}")
    own = [op for op in OPS if hasattr(kernel, op)]
    assert own
    for op in own:
        ours, theirs = (inspect.signature(getattr(k, op)).parameters for k in (kernel, naive))
        assert {key: (p.kind, p.default) for key, p in ours.items()} == {
            key: (p.kind, p.default) for key, p in theirs.items()
        }, op


@every
def test_what_a_kernel_does_not_have_torch_runs(name):
    kernel = importlib.import_module(f"fas.kernels.{name}")
    for op in OPS:
        if not hasattr(kernel, op):
            assert choose(op, kernel.name, CPU, torch.float32) is found()["torch"]


@every
@pytest.mark.parametrize("neuron", codes(), ids=label)
def test_every_neuron_is_what_the_loops_make_of_it(name, neuron):
    kernel = kernel_of(name)
    rng = torch.Generator().manual_seed(0)
    theta, v_init, offset = torch.rand(3, 19, generator=rng)
    x = 2 * torch.randn(3, 2, 19, generator=rng)
    x[0, 0, :4] = torch.tensor([1e30, -1e30, 1e9, -1e9])
    # Thresholds that follow the token go down with these, to the least that there is.
    x[1:] *= torch.tensor([[[1e-2], [1e-3]], [[1e-4], [1e-9]]])
    for steps in (1, 4, 9):
        if steps <= getattr(neuron, "burst", 0):
            continue
        code = Code.of(neuron, steps, 0.3 + theta, v_init, offset - 0.5)
        if code.recursion is None:
            assert type(neuron).recursion is None or neuron.bounds(steps)[1] > 2**15 - 1
            continue
        gain = neuron.gain(x * code.scale, code.upper)
        levels = torch.floor((x * gain - code.offset) * code.scale + code.v_init).clamp(code.lower, code.upper)
        truth, gains = neuron.settle(levels, steps), torch.ones_like(gain)
        sent = torch.zeros(19, dtype=torch.int64)
        assert torch.equal(kernel.counts(x, code, gain=gains), truth.to(torch.int16))
        assert torch.equal(gains, gain)
        assert torch.equal(kernel.encode(x, code, sent), (truth * code.unit + code.offset) / gain)
        assert torch.equal(sent, neuron.spikes(truth, steps).sum((0, 1)).long())
        if hasattr(kernel, "pack") and code.in_bits:
            gains.fill_(1)
            assert torch.equal(kernel.unpack(kernel.pack(x, code, gains), code), truth.to(torch.int16))
            assert torch.equal(gains, gain)
        if hasattr(kernel, "emit"):
            trains = kernel.emit(x, code)
            assert torch.equal(trains, naive.emit(x, code))
        if isinstance(neuron, RateNeuron):
            uneven = torch.randn(steps, 2, 19, generator=rng)
            for ours, theirs in zip(
                kernel.scan(uneven, code, first=1, difference=True),
                naive.scan(uneven, code, first=1, difference=True),
                strict=True,
            ):
                assert torch.equal(ours, theirs)


@every
# Triton's interpreter casts in numpy, which warns where a GPU does not.
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize("neuron", codes(), ids=label)
def test_what_is_no_number_stays_so(name, neuron):
    kernel, one = kernel_of(name), torch.ones(40)
    code = Code.of(neuron, 4, one, one / 2, 0 * one)
    if code.recursion is None or kernel is naive:
        return
    x = torch.zeros(2, 40)
    x[:, ::3] = torch.nan
    assert torch.equal(kernel.encode(x, code).isnan(), x.isnan())
    assert not kernel.counts(x, code).any()
