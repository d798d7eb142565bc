from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fas.storage.journal import Journal, directly

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journal")


@given(entries=st.dictionaries(st.text(), VALUES, max_size=4), data=st.data())
def test_whatever_is_cut_off_leaves_the_lines_before(entries, data, place: Path) -> None:
    file = place / "journal.jsonl"
    file.unlink(missing_ok=True)
    journal = Journal(file)
    ends = [0]
    for key, value in entries.items():
        journal.add(key, value)
        ends.append(file.stat().st_size)
    if not entries:
        assert not file.exists()
        return
    cut = data.draw(st.integers(0, ends[-1]))
    os.truncate(file, cut)
    whole = sum(end <= cut for end in ends) - 1
    again = Journal(file)
    assert list(again.entries.items()) == list(entries.items())[:whole]
    # What comes next does not stick to half a line.
    again.add("next", 1)
    assert Journal(file).entries == {**dict(list(entries.items())[:whole]), "next": 1}


def test_floats_come_back_bit_by_bit(tmp_path: Path) -> None:
    values = [0.1, 1 / 3, 5e-324, math.inf, -0.0, 2.0**53 + 2]
    Journal(tmp_path / "a" / "j.jsonl").add("x", [*values, math.nan])
    found = Journal(tmp_path / "a" / "j.jsonl").entries["x"]
    assert [x.hex() for x in found[:-1]] == [x.hex() for x in values] and math.isnan(found[-1])


@pytest.mark.parametrize("line", ["7", "[1, 2]", '["a"]', '["a", 1, 2]', "{}", "\x00", '["a", 1'])
def test_lines_that_are_no_entries(tmp_path: Path, line: str) -> None:
    file = tmp_path / "j.jsonl"
    file.write_text(f'["whole", 1]\n{line}\n["behind", 2]\n')
    assert Journal(file).entries == {"whole": 1}
    assert [json.loads(x) for x in file.read_text().splitlines()] == [["whole", 1]]


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.add("a", 1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", full)
        journal.add("b", 2)
    journal.add("c", 3)
    assert Journal(tmp_path / "j.jsonl").entries == {"a": 1, "c": 3}
    journal.remove()
    assert not (tmp_path / "j.jsonl").exists() and journal.entries == {}


def test_directly_does_the_work_each_time() -> None:
    calls: list[int] = []
    assert [directly("same", lambda: calls.append(1) or len(calls)) for _ in range(2)] == [1, 2]
