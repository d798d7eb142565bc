from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fas.bench import machine


def checkout(root: Path) -> Path:
    package = root / "src" / "fas"
    package.mkdir(parents=True)
    (root / ".git" / "refs" / "heads").mkdir(parents=True)
    return package


def test_the_commit_of_a_branch_loose_and_packed(tmp_path: Path) -> None:
    package = checkout(tmp_path)
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    assert machine.commit(package) is None
    (tmp_path / ".git" / "packed-refs").write_text("# pack-refs\nbbb refs/heads/mainland\naaa refs/heads/main\n")
    assert machine.commit(package) == "aaa"
    (tmp_path / ".git" / "refs" / "heads" / "main").write_text("ccc\n")
    assert machine.commit(package) == "ccc"


def test_a_detached_head(tmp_path: Path) -> None:
    package = checkout(tmp_path)
    (tmp_path / ".git" / "HEAD").write_text("ddd\n")
    assert machine.commit(package) == "ddd"


def test_the_commit_of_somebody_elses_repository_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout(tmp_path)
    (tmp_path / ".git" / "HEAD").write_text("ddd\n")
    installed = tmp_path / "lib" / "fas"
    installed.mkdir(parents=True)

    class Distribution:
        stated: str | None = None

        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return self.stated

    monkeypatch.setattr(machine, "distribution", lambda name: Distribution())
    assert machine.commit(installed) is None
    Distribution.stated = '{"url": "x", "vcs_info": {"vcs": "git", "commit_id": "eee"}}'
    assert machine.commit(installed) == "eee"


def test_the_description() -> None:
    about = machine.describe(torch.device("cpu"))
    assert about["threads"] == torch.get_num_threads() and about["device"] and about["cores"] >= 1
