from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fas.errors import CheckpointError
from fas.storage.resume import Run, directly

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
ABOUT = {"data": "a", "timesteps": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journal")


@settings(max_examples=settings.default.max_examples // 4)
@given(entries=st.dictionaries(st.text(), VALUES, max_size=4), data=st.data())
def test_whatever_is_cut_off_leaves_the_lines_before(entries, data, place: Path) -> None:
    file = place / "journal.jsonl"
    file.unlink(missing_ok=True)
    run = Run(file, ABOUT)
    run.begin()
    ends = [file.stat().st_size]
    for key, value in entries.items():
        run.add(key, value)
        ends.append(file.stat().st_size)
    cut = data.draw(st.integers(ends[0], ends[-1]))
    os.truncate(file, cut)
    whole = sum(end <= cut for end in ends) - 1
    again = Run(file, ABOUT, refuse=data.draw(st.booleans()))
    assert list(again.entries.items()) == list(entries.items())[:whole]
    # What comes next does not stick to half a line.
    again.add("next", 1)
    assert Run(file, ABOUT).entries == {**dict(list(entries.items())[:whole]), "next": 1}


def test_floats_come_back_bit_by_bit(tmp_path: Path) -> None:
    values = [0.1, 1 / 3, 5e-324, math.inf, -0.0, 2.0**53 + 2]
    Run(tmp_path / "a" / "j.jsonl", ABOUT).add("x", [*values, math.nan])
    found = Run(tmp_path / "a" / "j.jsonl", ABOUT).entries["x"]
    assert [x.hex() for x in found[:-1]] == [x.hex() for x in values] and math.isnan(found[-1])


@pytest.mark.parametrize("line", ["7", "[1, 2]", '["a"]', '["a", 1]', "{}", "\x00", '["a", 1, null'])
def test_lines_that_are_no_entries(tmp_path: Path, line: str) -> None:
    file = tmp_path / "j.jsonl"
    Run(file, ABOUT).add("whole", 1)
    file.write_text(f'{file.read_text()}{line}\n["behind", 2, null]\n')
    with pytest.raises(CheckpointError, match=r"j\.jsonl is damaged: remove .* and start from the beginning"):
        Run(file, ABOUT, refuse=True)
    assert Run(file, ABOUT).entries == {"whole": 1}
    assert [json.loads(x) for x in file.read_text().splitlines()] == [ABOUT, ["whole", 1, None]]


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "j.jsonl", ABOUT)
    run.add("a", 1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", full)
        run.add("b", 2)
    run.add("c", 3)
    assert Run(tmp_path / "j.jsonl", ABOUT).entries == {"a": 1, "c": 3}
    run.remove()
    assert not (tmp_path / "j.jsonl").exists() and run.entries == {}


def test_another_run_is_refused_or_left_until_something_is_done(tmp_path: Path, caplog) -> None:
    file = tmp_path / "j.jsonl"
    Run(file, ABOUT).add("a", 1, {"x": torch.ones(2)})
    other = {**ABOUT, "timesteps": 5}
    with pytest.raises(CheckpointError, match="begun by another run: its timesteps is 4 and not 5; resume it with the"):
        Run(file, other, refuse=True)
    run = Run(file, other)
    assert run.entries == {} and Run(file, ABOUT).entries == {"a": 1} and "another run" not in caplog.text
    run.add("b", 2)
    assert "its timesteps is 4 and not 5; starting from the beginning" in caplog.text
    assert Run(file, other).entries == {"b": 2} and [path.name for path in tmp_path.iterdir()] == ["j.jsonl"]


def test_tensors_of_a_part_are_those_of_its_last_line(tmp_path: Path) -> None:
    file = tmp_path / "j.jsonl"
    run = Run(file, ABOUT)
    for value in range(3):
        run.part("stage").add("epoch", value, {"x": torch.full((2,), value, dtype=torch.bfloat16)})
    assert run.part("other").found("epoch") is None
    # Killed between the tensors of a part and its line: the part is as it was.
    (tmp_path / "j-00003.safetensors").write_bytes(b"half")
    value, tensors = Run(file, ABOUT).part("stage").found("epoch")
    assert value == 2 and torch.equal(tensors["x"], torch.full((2,), 2, dtype=torch.bfloat16))
    again = Run(file, ABOUT)
    again.part("stage").add("epoch", 3, {"x": torch.zeros(1)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["j-00003.safetensors", "j.jsonl"]
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_directly_does_the_work_each_time() -> None:
    calls: list[int] = []
    assert [directly("same", lambda: calls.append(1) or len(calls)) for _ in range(2)] == [1, 2]
