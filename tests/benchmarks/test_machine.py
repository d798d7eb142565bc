from __future__ import annotations

import subprocess

import pytest
import torch
from benchmarks.suite import machine


def test_the_description_names_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **named: subprocess.CompletedProcess((), 0, "aaa\n"))
    about = machine.describe(torch.device("cpu"))
    assert about["threads"] == torch.get_num_threads() and about["device"] and about["cores"] >= 1
    assert about["commit"] == "aaa"


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert machine.commit() is None
