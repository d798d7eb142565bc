"""Tasks of lm-evaluation-harness made of jsonl files, so that no data set has to come from the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fas.data.table import read_records
from fas.errors import DataError

# Names under which the harness knows a set whose file is called otherwise.
FILES = {"lambada": "lambada_openai", "openbookqa": "openbook_qa", "wsc": "winograd_wsc", "wsc273": "winograd_wsc"}

# Sets whose prompts end so in the harness, and do not in the files.
_ENDINGS = dict.fromkeys(("piqa", "arc_easy", "arc_challenge", "boolq"), "\nAnswer:")
_ACCURACY = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
_BY_LENGTH = {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}
_ONLY_ACCURACY = ("boolq", "copa")


@dataclass(frozen=True)
class _Layout:
    """What the rows of a file look like, and the task that they make."""

    columns: tuple[str, ...]
    choices: str | None  # column of the list that ``gold`` picks from
    config: Mapping[str, Any]  # fields of the harness's task


_LAYOUTS = (
    _Layout(
        ("query", "choices", "gold"),
        "choices",
        {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"},
    ),
    # Partial evaluation (Trinh and Le 2018, arXiv 1806.02847): one end after several beginnings.
    _Layout(
        ("context_options", "continuation", "gold"),
        "context_options",
        {
            "output_type": "multiple_choice",
            "doc_to_text": "gold",
            "doc_to_choice": "context_options",
            "doc_to_target": "continuation",
            "metric_list": [_ACCURACY],
        },
    ),
    _Layout(
        ("context", "continuation"),
        None,
        {
            "output_type": "loglikelihood",
            "doc_to_text": "{{context}}",
            # Here, unlike elsewhere, the harness puts nothing between the two.
            "doc_to_target": "{{' ' + continuation}}",
            "metric_list": [
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                _ACCURACY,
            ],
        },
    ),
    _Layout(
        ("text",),
        None,
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
        },
    ),
)


def local_task(name: str, folder: Path) -> dict[str, Any] | None:
    """Return the harness's configuration of a task whose data is a file of a folder.

    The file is ``NAME.jsonl``; ``FILES`` has the names that differ. Its rows say what the task is:
    ``query``, ``choices``, ``gold`` (choose the likeliest answer: PIQA, ARC, BoolQ, COPA, OpenBookQA),
    ``context_options``, ``continuation``, ``gold`` (choose the beginning that makes the end likeliest:
    WinoGrande, Winograd), ``context``, ``continuation`` (predict the last word: LAMBADA) or ``text``
    (perplexity). Prompts of the sets named here are those of the harness's own tasks.

    Returns:
        A task for ``lm_eval.tasks.TaskManager``, or None if the folder has no such file.

    Raises:
        DataError: a file that cannot be read, or rows of no known layout.
    """
    path = folder / f"{FILES.get(name, name)}.jsonl"
    if not path.is_file():
        return None
    rows = read_records(path)
    layout = _layout(path, rows[0])
    for number, row in enumerate(rows, 1):
        _check(path, number, row, layout)
    return {
        "task": name,
        "custom_dataset": _data_set([{column: row[column] for column in layout.columns} for row in rows]),
        "test_split": "test",
        "metadata": {"version": 1.0},
        **layout.config,
        **(_question(name) if "query" in layout.columns else {}),
    }


def local_names(folder: Path) -> list[str]:
    """Return the tasks that the jsonl files of a folder make."""
    stems = {path.stem for path in folder.glob("*.jsonl")}
    return sorted(stems | {name for name, stem in FILES.items() if stem in stems})


def _question(name: str) -> dict[str, Any]:
    ending = _ENDINGS.get(name, "")

    def prompt(row: Mapping[str, Any]) -> str:
        query: str = row["query"]
        # The file of BoolQ announces its passages; the harness does not.
        query = query.removeprefix("Passage: ") if name == "boolq" else query
        return query.rstrip() + ending

    metrics = [_ACCURACY] if name in _ONLY_ACCURACY else [_ACCURACY, _BY_LENGTH]
    return {"doc_to_text": prompt, "metric_list": metrics}


def _data_set(rows: Sequence[Mapping[str, Any]]) -> Callable[..., Any]:
    def load(**_: Any) -> Any:
        from datasets import Dataset, DatasetDict

        return DatasetDict(test=Dataset.from_list(list(rows)))

    return load


def _layout(path: Path, row: Mapping[str, Any]) -> _Layout:
    for layout in _LAYOUTS:
        if set(layout.columns) <= set(row):
            return layout
    known = "; ".join(", ".join(layout.columns) for layout in _LAYOUTS)
    raise DataError(f"{path} has columns {', '.join(row)}, of which no task can be made: expected {known}")


def _check(path: Path, number: int, row: Mapping[str, Any], layout: _Layout) -> None:
    missing = [column for column in layout.columns if column not in row]
    if missing:
        raise DataError(f"{path} row {number} has no {', '.join(missing)}, as row 1 has: fill it in or drop the row")
    if layout.choices is None:
        return
    choices, gold = row[layout.choices], row["gold"]
    if not isinstance(choices, list) or type(gold) is not int or not 0 <= gold < len(choices):
        raise DataError(
            f"{path} row {number} has gold {gold!r} for {layout.choices} {choices!r}: expected a list, and the place "
            "of the right one in it, from 0"
        )
