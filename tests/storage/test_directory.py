"""What killed processes leave beside a place, and putting a directory to its place again and again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fas.storage.directory import _stem, put, whole_directory, whole_file

# A process that has ended, and whose number no other has yet.
DEAD = subprocess.Popen([sys.executable, "-c", ""])
DEAD.wait()


def leave(place: Path, name: str, process: int) -> Path:
    left = place / f"{_stem(name)}{process}.abcdefgh"
    (left / "tmpold").mkdir(parents=True)
    (left / "tmpold" / "config.json").write_text("old")
    return left


def test_leftovers_of_dead_processes_go_and_others_stay(tmp_path: Path) -> None:
    ours, dead = leave(tmp_path, "a", os.getpid()), leave(tmp_path, "a", DEAD.pid)
    other, elsewhere = leave(tmp_path, "b", DEAD.pid), tmp_path / f".a.00000000-{DEAD.pid}.abcdefgh"
    elsewhere.mkdir()
    with whole_file(tmp_path / "a") as beside:
        beside.write_text("new")
    assert (tmp_path / "a").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"a", ours.name, other.name, elsewhere.name}
    assert not dead.exists()


def test_old_files_stay_until_the_new_ones_are_there(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    dead = leave(target, "model", DEAD.pid)
    with pytest.raises(OSError, match="disk full"), whole_directory(target) as beside:
        (beside / "config.json").write_text("half")
        raise OSError("disk full")
    assert (dead / "tmpold" / "config.json").read_text() == "old"
    with whole_directory(target) as beside:
        (beside / "config.json").write_text("new")
    assert [path.name for path in target.iterdir()] == ["config.json"]


def test_a_directory_is_put_to_its_place_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unlinked(*_: object) -> None:
        raise OSError(1, "no hard links here")

    target = tmp_path / "target"
    written = tmp_path / "written"
    (written / "more").mkdir(parents=True)
    (written / "model.safetensors").write_text("weights")
    (written / "more" / "file").write_text("deep")
    for links in (True, False):
        if not links:
            monkeypatch.setattr(os, "link", unlinked)
        target.mkdir(exist_ok=True)
        for _ in range(2):
            put(written, target)
            assert (target / "model.safetensors").read_text() == "weights"
            assert (target / "more" / "file").read_text() == "deep"
            assert {path.name for path in target.iterdir()} == {"model.safetensors", "more"}
    put(written, tmp_path / "new")
    assert not written.exists() and (tmp_path / "new" / "model.safetensors").is_file()
