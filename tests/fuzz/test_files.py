"""Data, prices, chips and rows from files: read, or refused with an error of this library."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mutations import edited_bytes, edited_json, json_values

from fas.cli.program.output import read_rows
from fas.data.image_text import load_pictures
from fas.data.table import load_table, read_records
from fas.data.text import load_documents
from fas.energy.prices import load_prices
from fas.errors import DataError
from fas.evaluation.local_tasks import local_task
from fas.exporting.mapping import load_chip

here = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

_COLUMNS = (
    "text", "label", "sentence", "query", "choices", "gold", "image", "captions", "question", "answers", "context",
    "continuation", "context_options",
)  # fmt: skip
_ROWS: list[dict[str, Any]] = [
    {"text": "a", "label": 1},
    {"sentence1": "a", "sentence2": "b", "label": "entailment"},
    {"query": "a", "choices": ["b", "c"], "gold": 1},
    {"context": "a", "continuation": "b"},
    {"image": "a.png", "captions": ["b"]},
]
_DEEP = b"[" * 100_000

records = (
    st.binary(max_size=60)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.lists(st.dictionaries(st.sampled_from(_COLUMNS), json_values, max_size=4), max_size=3).map(
        lambda rows: "\n".join(map(json.dumps, rows)).encode()
    )
    | edited_json(_ROWS).map(lambda rows: json.dumps(rows).encode())
)


def read_or_refused(*readers: Callable[[], Any]) -> None:
    for read in readers:
        try:
            read()
        except DataError as error:
            assert str(error)


@here
@given(records, st.sampled_from(["jsonl", "json", "csv", "tsv", "txt"]))
@example(_DEEP, "json")
@example(b'{"a":' * 100_000, "jsonl")
@example(b"1" * 5000, "jsonl")
@example(b'[{"text": "\\ud800", "label": 1}]', "json")
@example(b'{"text": "a", "label": 1e999}', "jsonl")
@example(b"NaN", "json")
@example(b"text\tlabel\na\t0\x00", "tsv")
def test_rows_of_data(tmp_path: Path, content: bytes, ending: str) -> None:
    file = tmp_path / f"x.{ending}"
    file.write_bytes(content)
    read_or_refused(
        lambda: read_records(file), lambda: load_table(file), lambda: load_documents(file), lambda: load_pictures(file)
    )
    if ending == "jsonl":
        read_or_refused(lambda: local_task("x", tmp_path))


_MODELS = {
    load_prices: (files("fas") / "energy" / "models" / "45nm.toml").read_bytes(),
    load_chip: (files("fas") / "exporting" / "chips" / "loihi2.toml").read_bytes(),
}
_TITLED = b'title="x"\nreference="y"\n'


@here
@given(st.binary(max_size=40) | edited_bytes(_MODELS[load_prices]) | edited_bytes(_MODELS[load_chip]))
@example(b"a=" + b"[" * 5000)
@example(_TITLED + b"constants=3")
@example(_TITLED + b'[constants.fp32_add]\nvalue=nan\nunit="pJ"\nsource="s"')
@example(_TITLED + b"[constants.fp32_add]\nvalue=1\nunit=[1]\nsource=3")
@example(_TITLED + b"[constants.fp32_add]\nvalue=1" + b"0" * 400 + b'\nunit="pJ"\nsource="s"')
def test_prices_and_chips(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(content)
    read_or_refused(lambda: load_prices(file), lambda: load_chip(file))


@pytest.mark.parametrize("load", _MODELS)
def test_what_the_fuzz_starts_from_is_read(load: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(_MODELS[load])
    assert load(tmp_path / "x.toml").name == "x"


_ROW = {"quantity": "a", "value": 1.0, "unit": "1", "origin": "measured", "conditions": {"model": "m"}}


@here
@given((json_values | edited_json([_ROW, _ROW])).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30))
@example(_DEEP)
def test_rows_of_results(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.json").write_bytes(content)
    read_or_refused(lambda: read_rows(tmp_path / "rows.json"))
