from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from benchmarks.suite import results

from fas.errors import DataError
from fas.types import Measurement

ROWS = [
    Measurement("prefill", 12.5, "tokens/s", "measured", {"subject": "dense", "interquartile": [11.0, 13.0]}),
    Measurement("absent", math.nan, "1", "measured", {"subject": "reference", "reason": "none"}),
]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bench.json"
    results.write(path, {"device": "x", "load": None}, ROWS)
    machine, rows = results.read(path)
    assert machine == {"device": "x", "load": None}
    assert rows[0] == ROWS[0] and math.isnan(rows[1].value)
    # Strict JSON: NaN would not be.
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["rows"][1]["value"] is None


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": [{"value": 1, "x": 2}], "machine": {}}', '{"machine": {}}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match="no results of a benchmark"):
        results.read(tmp_path / "x.json")
