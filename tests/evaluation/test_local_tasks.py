from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fas.errors import DataError
from fas.evaluation.local_tasks import FILES, local_names, local_task

SETS = {
    "lambada_openai": 5153, "piqa": 1838, "arc_easy": 2376, "arc_challenge": 1172, "boolq": 3270, "copa": 100,
    "openbookqa": 500, "winogrande": 1267, "wsc273": 273,
}  # fmt: skip


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_no_file_no_task(tmp_path: Path) -> None:
    assert local_task("piqa", tmp_path) is None and local_names(tmp_path) == []


def test_names(tmp_path: Path) -> None:
    write(tmp_path / "winograd_wsc.jsonl", {"text": "a"})
    write(tmp_path / "mine.jsonl", {"text": "a"})
    assert local_names(tmp_path) == ["mine", "winograd_wsc", "wsc", "wsc273"]
    assert all(local_task(name, tmp_path) is not None for name in local_names(tmp_path))
    assert FILES["wsc273"] == "winograd_wsc"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"query": "a", "choices": ["b", "c"], "gold": 2}, r"row 2 has gold 2 for choices \['b', 'c'\]"),
        ({"query": "a", "choices": ["b", "c"], "gold": True}, "row 2 has gold True"),
        ({"query": "a", "choices": "bc", "gold": 0}, "row 2 has gold 0 for choices 'bc'"),
        ({"query": "a", "gold": 0}, "row 2 has no choices, as row 1 has"),
    ],
)
def test_bad_rows(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    write(tmp_path / "mine.jsonl", {"query": "a", "choices": ["b", "c"], "gold": 1}, row)
    with pytest.raises(DataError, match=problem):
        local_task("mine", tmp_path)


def test_unknown_layout(tmp_path: Path) -> None:
    write(tmp_path / "mine.jsonl", {"question": "a"})
    with pytest.raises(DataError, match="has columns question, of which no task can be made: expected query, choices"):
        local_task("mine", tmp_path)


@pytest.fixture(scope="module")
def manager() -> Any:
    return pytest.importorskip("lm_eval.tasks", reason="pip install 'fas[eval]'").TaskManager(include_defaults=False)


def built(name: str, folder: Path, manager: Any) -> Any:
    return manager.load([local_task(name, folder)])["tasks"][name]


@pytest.mark.parametrize("name", SETS)
def test_the_sets_as_they_are_published(shared_data: Path, manager: Any, name: str) -> None:
    task = built(name, shared_data / "zeroshot", manager)
    assert len(task.test_docs()) == SETS[name]


def harness_prompt(name: str, row: dict[str, Any]) -> str:
    """Fill in the template of the harness's own task."""
    import jinja2
    import lm_eval
    import yaml

    place = {"piqa": "piqa/piqa", "arc_easy": "arc/arc_easy", "boolq": "super_glue/boolq/default"}[name]
    text = (Path(lm_eval.__file__).parent / "tasks" / f"{place}.yaml").read_text()
    return jinja2.Template(yaml.safe_load(text)["doc_to_text"]).render(row)


def test_prompts_are_those_of_the_harness(tmp_path: Path, manager: Any) -> None:
    rows = {
        "piqa": ("Question: How do I boil an egg?\n", {"goal": "How do I boil an egg?"}),
        "arc_easy": ("Question: What is ice?", {"question": "What is ice?"}),
        "boolq": (
            "Passage: Ice is cold.\nQuestion: is ice cold?",
            {"passage": "Ice is cold.", "question": "is ice cold"},
        ),
    }
    for name, (query, published) in rows.items():
        write(tmp_path / f"{name}.jsonl", {"query": query, "choices": ["no", "yes"], "gold": 1})
        task = built(name, tmp_path, manager)
        row = task.test_docs()[0]
        prompt = task.doc_to_text(row)
        assert prompt == harness_prompt(name, published)
        # The answer follows behind a space.
        requests = task.construct_requests(row, prompt, metadata=(name, 0, 1), apply_chat_template=False)
        assert [request.args for request in requests] == [(prompt, " no"), (prompt, " yes")]
        assert task.doc_to_target(row) == 1


@pytest.mark.parametrize("name", ["arc_easy", "boolq", "mine"])
def test_only_boolq_loses_the_announcement_of_its_passages(tmp_path: Path, manager: Any, name: str) -> None:
    write(tmp_path / f"{name}.jsonl", {"query": "Passage: Ice.", "choices": ["no", "yes"], "gold": 1})
    task = built(name, tmp_path, manager)
    assert task.doc_to_text(task.test_docs()[0]).startswith("Ice." if name == "boolq" else "Passage: Ice.")


def test_partial_evaluation_compares_beginnings(tmp_path: Path, manager: Any) -> None:
    row = {"context_options": ["He saw Ann, so Ann", "He saw Ann, so he"], "continuation": "ran.", "gold": 1}
    write(tmp_path / "winogrande.jsonl", row)
    task = built("winogrande", tmp_path, manager)
    doc = task.test_docs()[0]
    contexts = task.fewshot_context(doc, num_fewshot=0)
    requests = task.construct_requests(doc, contexts, metadata=("winogrande", 0, 1), apply_chat_template=False)
    assert [request.args for request in requests] == [
        ("He saw Ann, so Ann", " ran."), ("He saw Ann, so he", " ran.")
    ]  # fmt: skip
    assert task.process_results(doc, [(-3.0, False), (-2.0, False)])["acc"] == 1.0
    assert task.process_results(doc, [(-2.0, False), (-3.0, False)])["acc"] == 0.0


def test_the_last_word(tmp_path: Path, manager: Any) -> None:
    write(tmp_path / "lambada_openai.jsonl", {"context": "one two", "continuation": "three"})
    task = built("lambada_openai", tmp_path, manager)
    doc = task.test_docs()[0]
    request = task.construct_requests(doc, task.doc_to_text(doc), metadata=("x", 0, 1), apply_chat_template=False)
    assert request.args == ("one two", " three")
