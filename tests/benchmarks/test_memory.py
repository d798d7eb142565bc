from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from benchmarks.suite import memory
from benchmarks.suite.absent import AbsentError
from benchmarks.suite.memory import Job
from benchmarks.suite.stock import Stock

from fas.methods.fas import FAS

linux = pytest.mark.skipif(not memory._RESET.exists(), reason="this system keeps no high-water mark to lower")


@pytest.fixture(scope="module")
def job(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    method = FAS(timesteps=4)
    file = tmp_path_factory.mktemp("memory") / "parameters.safetensors"
    Stock(str(directory), method, tokens=32).save(file)
    return Job(str(directory), "dense", asdict(method), str(file), "cpu", 1, batch=1, prompt=8, new=2)


@linux
def test_the_mark_follows_what_is_held_for_a_moment_only() -> None:
    meter = memory._ResidentSet()
    before = meter.lower()
    block = torch.ones(2**24)  # 64 MiB, written to
    del block
    high = meter.highest() - before
    # The kernel keeps its counts in batches per thread; pages of the interpreter come on top.
    assert 63 * 2**20 <= high < 80 * 2**20
    assert meter.lower() - before < 16 * 2**20
    assert meter.highest() - before < 16 * 2**20


@linux
def test_a_process_of_its_own_measures_a_subject(job: Job) -> None:
    peak = memory.peak(replace(job, subject="stepped"))
    # Tiny, but not nothing: the model's 84 kB of weights and its activations, far below what libraries hold.
    assert 0 <= peak.above_model <= peak.total < 100 * 2**20


@linux
def test_why_a_subject_is_absent_comes_back(job: Job) -> None:
    with pytest.raises(AbsentError, match="converts qwen2, this is gpt2"):
        memory.peak(replace(job, subject="spikingjelly-qwen2"))
