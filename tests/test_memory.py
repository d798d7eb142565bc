"""Resident memory."""

from pathlib import Path

import pytest
import torch

from fas.memory import give_back, peak_resident

STATUS = Path("/proc/self/status")


def field(name):
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


@pytest.mark.skipif(not STATUS.is_file(), reason="the system does not state what a process holds")
def test_the_peak_follows_what_is_held():
    before = peak_resident()
    block = torch.ones(before // 4 + (64 << 20))
    # The kernel counts pages in batches: 2 MiB of slack.
    assert peak_resident() >= field("VmRSS") - (2 << 20)
    del block
    assert peak_resident() >= before


@pytest.mark.skipif(not STATUS.is_file(), reason="the system does not state what a process holds")
def test_freed_memory_is_given_back():
    # Tensors small enough for the heap of the C library, with some between them that stay.
    blocks = [torch.ones(2**14 + 64) for _ in range(2000)]
    kept = blocks[::100]
    del blocks
    before = field("VmRSS")
    give_back()
    after = field("VmRSS")
    assert after <= before and len(kept) == 20
