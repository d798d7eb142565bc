"""Which backend runs: the fastest that can, the one that is named, or an error that says why not."""

import logging
from importlib.util import find_spec

import pytest
import torch

from fas.errors import FASError
from fas.kernels import cpu, naive, torch_
from fas.kernels.interface import dispatch
from fas.layers.simulation import Simulation

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture(autouse=True)
def fresh():
    dispatch.choose.cache_clear()
    yield
    dispatch.choose.cache_clear()


def test_the_fastest_that_can_is_chosen_and_logged_once(caplog):
    able, _ = cpu.supports("encode", CPU, torch.float32)
    with caplog.at_level(logging.INFO, logger="fas.kernels.interface.dispatch"):
        chosen = [dispatch.choose("encode", "auto", CPU, torch.float32) for _ in range(3)]
    assert chosen == [cpu if able else torch_] * 3
    (record,) = caplog.records
    assert "encode on cpu in torch.float32: kernels" in record.getMessage()


@pytest.mark.parametrize(("device", "dtype"), [(CPU, torch.bfloat16), (CPU, torch.int64), (META, torch.float32)])
def test_torch_runs_what_no_other_can(device, dtype, caplog):
    with caplog.at_level(logging.INFO, logger="fas.kernels.interface.dispatch"):
        assert dispatch.choose("encode", "auto", device, dtype) is torch_
    assert "cpu: " in caplog.text and "triton: " in caplog.text


@pytest.mark.parametrize(("name", "module"), [("torch", torch_), ("naive", naive)])
def test_a_backend_by_name(name, module):
    assert dispatch.choose("scan", name, CPU, torch.float32) is module


def test_a_backend_by_name_that_cannot_run_is_an_error():
    with pytest.raises(FASError, match=r"kernels='cpu' cannot run encode: the tensors are on meta. Set model.kernels"):
        dispatch.choose("encode", "cpu", META, torch.float32)
    with pytest.raises(FASError, match=r"kernels='cpu' cannot run encode: it has no encode for torch\.float16"):
        dispatch.choose("encode", "cpu", CPU, torch.float16)


@pytest.mark.skipif(find_spec("triton") is not None, reason="triton is installed")
def test_triton_needs_a_gpu():
    with pytest.raises(FASError, match="kernels='triton' cannot run encode: the tensors are on cpu"):
        dispatch.choose("encode", "triton", CPU, torch.float32)


def test_products_that_a_backend_does_not_have_are_those_of_torch():
    assert dispatch.choose("integer_linear", "triton", CPU, torch.float32) is torch_


def test_without_numba_torch_runs(monkeypatch):
    monkeypatch.setattr(cpu, "find_spec", lambda name: None)
    cpu._unavailable.cache_clear()
    try:
        assert dispatch.choose("encode", "auto", CPU, torch.float32) is torch_
        with pytest.raises(FASError, match=r"numba is not installed: pip install 'fas\[fast\]'"):
            dispatch.choose("encode", "cpu", CPU, torch.float32)
    finally:
        cpu._unavailable.cache_clear()


def test_the_environment_names_the_default(monkeypatch):
    assert Simulation().kernels == "auto"
    monkeypatch.setenv("FAS_KERNELS", "torch")
    assert Simulation().kernels == "torch"
    monkeypatch.setenv("FAS_KERNELS", "gpu")
    with pytest.raises(ValueError, match="FAS_KERNELS is 'gpu'; choose one of auto, torch, cpu, triton, naive"):
        Simulation()
