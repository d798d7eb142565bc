"""Rows of files and of data sets of the hub; labelled sentences and sentence pairs from GLUE-style files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fas.errors import DataError, MissingExtraError

Task = Literal["classification", "regression"]

PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("#1 String", "#2 String"),
)
SENTENCE_COLUMNS = ("sentence", "text")
LABEL_COLUMNS = ("label", "labels", "gold_label", "is_duplicate", "Quality", "score")
COLA_HEADER = ("source", "label", "star", "sentence")
# GLUE numbers its named labels in this order, which is not the alphabet's for MNLI.
LABEL_ORDERS = (("entailment", "not_entailment"), ("entailment", "neutral", "contradiction"))


@dataclass(frozen=True)
class Table:
    """Sentences (or sentence pairs) with one label each.

    Attributes:
        sentences: the only, or the first, sentence of each row.
        pairs: the second sentence of each row, or None where rows hold one sentence.
        labels: class indices (int) for classification, scores (float) for regression.
        task: ``classification`` or ``regression``.
        label_names: name of class i at place i; empty for regression.
    """

    sentences: list[str]
    pairs: list[str] | None
    labels: list[int] | list[float]
    task: Task
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.sentences)


def read_utf8(path: Path) -> str:
    """Return the text of ``path`` (a byte order mark is dropped).

    Raises:
        DataError: the file is not UTF-8.
    """
    # newline="" keeps carriage returns inside a line; only the line feed ends a row.
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            return file.read()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is not UTF-8 text (byte {error.start}): give a text file, or convert it"
            ) from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read a .json, .jsonl, .csv or tab-separated file as one dict per row.

    Quote characters in tab-separated files are literal, as GLUE writes them. A CoLA file, which
    has no header, gets the columns source, label, star, sentence.

    Raises:
        DataError: not UTF-8, malformed, or without any row.
    """
    suffix = path.suffix.lower()
    if suffix in (".json", ".jsonl"):
        records = list(_json_records(path))
    else:
        rows = list(_csv_rows(path) if suffix == ".csv" else _tsv_rows(path))
        first = rows[0][1] if rows else []
        if len(first) == len(COLA_HEADER) and first[1] in ("0", "1") and first[2] in ("", "*"):
            rows.insert(0, (0, list(COLA_HEADER)))
        records = list(_zip_header(path, rows))
    if not records:
        raise DataError(f"{path} has no rows: expected at least one row of data")
    return records


def hub_rows(source: str, split: str) -> list[Any]:
    """Return the rows of one split of a data set of the hub, ``name`` or ``name:config``.

    Raises:
        DataError: no such data set, or no rows.
        MissingExtraError: the datasets library is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"hub data set {source!r} needs the datasets library: pip install 'fas[data]'"
        ) from error
    name, _, config = source.partition(":")
    try:
        rows = list(datasets.load_dataset(name, config or None, split=split))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{source!r}: no such file or directory here, and hub data set {name!r} "
            f"(config {config or None!r}, split {split!r}) cannot be loaded: {error}"
        ) from error
    if not rows:
        raise DataError(f"hub data set {source!r} has no rows in split {split!r}")
    return rows


def load_table(path: str | Path, *, task: Task | None = None, label_names: Sequence[str] | None = None) -> Table:
    """Read labelled sentences or sentence pairs from a GLUE-style file.

    Knows the files of the GLUE benchmark (Wang et al. 2018, arXiv 1804.07461) by their columns,
    and any file with a label column and sentence/text, sentence1+sentence2, question+sentence,
    question1+question2 or premise+hypothesis. A column named ``score`` or with fractional labels
    means regression. Integer labels are class indices as they stand; named labels are numbered in
    GLUE's order where GLUE knows them, else alphabetically.

    Args:
        path: .tsv, .csv, .json (list of objects) or .jsonl; another suffix is read as tab-separated.
        task: overrides what the labels look like.
        label_names: class names by index, for labels in another order or a file that lacks some.

    Raises:
        DataError: missing file, malformed row, unknown columns, no labels, or labels that do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is not a file: expected a .tsv, .csv, .json or .jsonl file with labels")
    records = read_records(path)
    columns = list(records[0])
    first, second = _text_columns(path, columns)
    label = next((name for name in LABEL_COLUMNS if name in columns), None)
    if label is None:
        raise DataError(
            f"{path} has no labels (columns {columns}), as GLUE's test files: use the dev file, or call the column "
            f"that holds them {LABEL_COLUMNS[0]!r}"
        )
    values = [record.get(label) for record in records]
    for row, value in enumerate(values, 1):
        if value is None or value == "":
            raise DataError(f"{path} row {row} has no value in column {label!r}: fill it in or drop the row")
    kind = task or ("regression" if label == "score" or _fractional(values) else "classification")
    labels: list[int] | list[float]
    names: tuple[str, ...] = ()
    if kind == "regression":
        labels = [_score(path, row, value) for row, value in enumerate(values, 1)]
    else:
        labels, names = _classes(path, values, label_names)
    seconds = None if second is None else texts_of(records, second, path)
    return Table(texts_of(records, first, path), seconds, labels, kind, names)


def texts_of(records: Sequence[Mapping[str, Any]], column: str, origin: object) -> list[str]:
    """Return the texts of a column, one of every record.

    Raises:
        DataError: a record without a string there; ``origin`` and the row are named.
    """
    for row, record in enumerate(records, 1):
        if not isinstance(record.get(column), str):
            raise DataError(f"{origin} row {row} column {column!r} holds {record.get(column)!r}: expected a string")
    return [record[column] for record in records]


def tokenise_table(
    table: Table, tokenizer: Any, max_length: int = 128, *, vocab_size: int | None = None
) -> list[dict[str, Any]]:
    """Return one dict per row: the tokenizer's lists of ids, cut at ``max_length``, and ``labels``.

    The list serves as a map-style data set for ``torch.utils.data`` and for transformers' Trainer
    with ``DataCollatorWithPadding``; rows are not padded here.

    Raises:
        DataError: ``table`` is empty, or an id that the model has no embedding for.
    """
    if not len(table):
        raise DataError("the table has no rows: load a file with at least one labelled row")
    encoded = tokenizer(table.sentences, table.pairs, truncation=True, max_length=max_length)
    check_ids(encoded["input_ids"], tokenizer, vocab_size)
    keys = list(encoded.keys())
    return [{**{key: encoded[key][row] for key in keys}, "labels": label} for row, label in enumerate(table.labels)]


def check_ids(rows: Iterable[Sequence[int]], tokenizer: Any, vocab_size: int | None) -> None:
    """Refuse token ids that a model of ``vocab_size`` embeddings has none for; None checks nothing.

    Raises:
        DataError: such an id.
    """
    highest = max((max(row, default=-1) for row in rows), default=-1)
    if vocab_size is not None and highest >= vocab_size:
        raise DataError(
            f"token id {highest} does not fit a model of {vocab_size} embeddings: "
            f"{type(tokenizer).__name__} ({len(tokenizer)} entries) belongs to another model; "
            "load the tokenizer saved with this one, or call model.resize_token_embeddings"
        )


def _json_records(path: Path) -> Iterator[dict[str, Any]]:
    text = read_utf8(path)
    try:
        if text.lstrip().startswith("["):
            items = json.loads(text)
        else:
            # Not splitlines: JSON strings may hold U+2028 and other characters that it splits at.
            items = [json.loads(line) for line in text.split("\n") if line.strip()]
    # RecursionError: brackets in brackets; ValueError: a number of thousands of digits, too.
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not valid JSON ({error}): expected a list of objects, or one object per line"
        ) from error
    for row, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise DataError(f"{path} row {row} is a {type(item).__name__}: expected an object with named columns")
        yield item


def _tsv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        if line.strip("\r"):
            yield number, line.rstrip("\r").split("\t")


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(read_utf8(path), newline=""), strict=True)
    try:
        yield from ((reader.line_num, row) for row in reader if row)
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num} is not valid CSV ({error}): mend the quotes") from error


def _zip_header(path: Path, rows: list[tuple[int, list[str]]]) -> Iterator[dict[str, Any]]:
    header = rows[0][1] if rows else []
    for number, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(
                f"{path} line {number} has {len(row)} fields, expected {len(header)} {header}: mend the line"
            )
        yield dict(zip(header, row, strict=True))


def _text_columns(path: Path, columns: list[str]) -> tuple[str, str | None]:
    for first, second in PAIR_COLUMNS:
        if first in columns and second in columns:
            return first, second
    for name in SENTENCE_COLUMNS:
        if name in columns:
            return name, None
    raise DataError(
        f"{path} has columns {columns}, none known to hold sentences: call them {SENTENCE_COLUMNS[0]!r}, or "
        f"{' and '.join(map(repr, PAIR_COLUMNS[0]))}"
    )


def _integer(value: Any) -> int | None:
    try:
        return int(value) if isinstance(value, int | str) else None
    except ValueError:
        return None


def _fractional(values: list[Any]) -> bool:
    try:
        return all(_integer(v) is not None or float(v) is not None for v in values) and any(
            _integer(v) is None for v in values
        )
    except (TypeError, ValueError):
        return False


def _score(path: Path, row: int, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} row {row} has label {value!r}: expected a number for regression") from error


def _classes(path: Path, values: list[Any], label_names: Sequence[str] | None) -> tuple[list[int], tuple[str, ...]]:
    integers = [number for number in map(_integer, values) if number is not None]
    if len(integers) == len(values):
        if min(integers) < 0:
            raise DataError(f"{path} has label {min(integers)}, which marks rows without labels: use the dev file")
        count = len(label_names) if label_names else max(integers) + 1
        if max(integers) >= count:
            raise DataError(f"{path} has label {max(integers)}, but label_names has only {count} names")
        return integers, tuple(label_names or map(str, range(count)))
    found = {str(value) for value in values}
    if label_names is None:
        known = [order for order in LABEL_ORDERS if found <= set(order)]
        label_names = known[0] if known else sorted(found)
    if missing := found - set(label_names):
        raise DataError(f"{path} has labels {sorted(missing)}, which label_names {list(label_names)} lacks")
    index = {name: number for number, name in enumerate(label_names)}
    return [index[str(value)] for value in values], tuple(label_names)
