from __future__ import annotations

from pathlib import Path

import pytest

from fas.errors import DataError
from fas.evaluation.glue import GLUE, as_table, glue_table

ROWS = {"cola": 1043, "sst2": 872, "mrpc": 408, "stsb": 1500, "qnli": 5463, "rte": 277, "wnli": 71}


@pytest.mark.parametrize("task", ROWS)
def test_development_rows_of_the_archive(shared_data: Path, task: str) -> None:
    table = glue_table(task, shared_data / "glue")
    assert len(table) == ROWS[task] and (table.pairs is None) == (len(GLUE[task].columns) == 1)
    assert len(table.label_names) == (0 if task == "stsb" else 2)


def test_nine_tasks_and_their_scores() -> None:
    assert set(GLUE) - {"mnli_mismatch"} == {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"}
    metrics = [GLUE[task].metrics for task in ("cola", "qqp", "stsb")]
    assert metrics == [("matthews",), ("accuracy", "f1"), ("pearson", "spearman")]


def test_three_classes_in_the_order_of_the_benchmark(tmp_path: Path) -> None:
    place = tmp_path / "MNLI"
    place.mkdir()
    lines = ["index\tsentence1\tsentence2\tgold_label", "0\ta\tb\tcontradiction", "1\tc\td\tentailment"]
    (place / "dev_matched.tsv").write_text("\n".join(lines) + "\n")
    table = glue_table("mnli", tmp_path)
    assert table.labels == [2, 0] and table.label_names == ("entailment", "neutral", "contradiction")
    assert glue_table("mnli", tmp_path, limit=1).labels == [2]
    # The hub numbers the same classes.
    hub = as_table(
        [{"premise": "a", "hypothesis": "b", "label": 2}, {"premise": "c", "hypothesis": "d", "label": 0}], "mnli"
    )
    assert (hub.sentences, hub.pairs, hub.labels, hub.label_names) == (
        table.sentences, table.pairs, table.labels, table.label_names,
    )  # fmt: skip


def test_scores_are_a_regression(tmp_path: Path) -> None:
    place = tmp_path / "STS-B"
    place.mkdir()
    (place / "dev.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t5.0\nc\td\t2\n")
    assert glue_table("stsb", tmp_path).labels == [5.0, 2.0]
    hub = as_table([{"sentence1": "a", "sentence2": "b", "label": 5}], "stsb")
    assert hub.task == "regression" and hub.labels == [5.0]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'piqa' is not a GLUE task: choose among cola, sst2"):
        glue_table("piqa", tmp_path)
    with pytest.raises(DataError, match=r"CoLA/dev\.tsv is not a file"):
        glue_table("cola", tmp_path)
