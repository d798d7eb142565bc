from __future__ import annotations

import json
from pathlib import Path

import pytest

from fas.evaluation.local_tasks import local_task

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'fas[eval]'")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sets")
    words = [{"context": f"count to {n}:", "continuation": n} for n in ("one", "two", "three")]
    questions = [{"query": f"{a} and {a}", "choices": [str(a + a), "none"], "gold": a % 2} for a in range(6)]
    for name, rows in {"lambada_openai": words, "sums": questions}.items():
        (place / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return place


def test_dense_model_has_the_figures_of_the_harness(rows, dense: Path, sets: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    found = rows("evaluate", dense, "--tasks", "lambada,sums", "--task-path", sets, "--batch-size", 2)
    lm = HFLM(pretrained=str(dense), device="cpu", batch_size=2)
    for task in ("lambada", "sums"):
        plain = simple_evaluate(
            model=lm, tasks=[local_task(task, sets)], task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
        )["results"][task]  # fmt: skip
        ours = {row["quantity"]: row["value"] for row in found if row["conditions"]["data"] == task}
        # The same computation: equal to the last bit.
        assert ours == {metric: plain[f"{metric},none"] for metric in ours} and "acc" in ours
    assert {row["conditions"]["network"] for row in found} == {"ann"}


def test_time_steps_networks_and_spikes(rows, dense: Path, snn: Path, sets: Path) -> None:
    arguments = ["--tasks", "lambada", "--task-path", sets, "--limit", 2]
    found = rows("evaluate", snn, *arguments, "--timesteps", "2,4")
    perplexities = [row for row in found if row["quantity"] == "perplexity"]
    assert [row["conditions"]["timesteps"] for row in perplexities] == [2, 4]
    assert [row["conditions"]["levels"] for row in perplexities] == [5, 9]
    assert perplexities[0]["value"] != perplexities[1]["value"]
    assert {row["origin"] for row in found} == {"measured"}
    about = perplexities[0]["conditions"]
    assert (about["samples"], about["fewshot"], about["source"]) == (2, 0, str(sets)) and about["stderr"] >= 0
    few, many = [row["value"] for row in found if row["quantity"] == "spikes_per_neuron"]
    assert 0 < few < many
    ann = rows("evaluate", snn, *arguments, "--network", "ann")
    plain = rows("evaluate", dense, *arguments)
    # The dense network inside is bit-equal to the dense model.
    assert [row["value"] for row in ann] == [row["value"] for row in plain]


def test_table_without_json(run, snn: Path, sets: Path) -> None:
    shown = run("evaluate", snn, "--tasks", "sums", "--task-path", sets, "--fewshot", 1).stdout
    assert "acc_norm" in shown and "± stderr" in shown and "bootstrapping" not in shown


def test_glue_of_a_classifier(run, rows, classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "SST-2/dev.tsv").write_text("sentence\tlabel\ngood film\t1\nbad film\t0\npoor film\t0\n")
    (tmp_path / "CoLA/dev.tsv").write_text("gj04\t1\t\tgood film\ngj04\t0\t*\tfilm bad\n")
    found = rows("evaluate", classifier, "--tasks", "sst2,cola", "--task-path", tmp_path)
    assert [(row["quantity"], row["conditions"]["data"], row["conditions"]["samples"]) for row in found] == [
        ("accuracy", "sst2", 3), ("matthews", "cola", 2)
    ]  # fmt: skip
    place = tmp_path / "snn"
    run("convert", classifier, place, "--data", tmp_path / "SST-2/dev.tsv", "--timesteps", 4)
    spiking = rows("evaluate", place, "--tasks", "sst2", "--task-path", tmp_path, "--limit", 2)
    assert [row["quantity"] for row in spiking] == ["accuracy", "spikes_per_neuron"]
    assert spiking[0]["conditions"]["samples"] == 2 and spiking[1]["value"] > 0
    told = run("evaluate", classifier, "--tasks", "sst2", "--task-path", tmp_path, "--fewshot", 1, code=1)
    assert "is a classifier" in told.stderr
    told = run("evaluate", classifier, "--tasks", "piqa", "--task-path", tmp_path, code=1)
    assert "is not a GLUE task" in told.stderr


def test_options_that_do_not_go_together(run, snn: Path, text: Path, sets: Path) -> None:
    assert "--task-path" in run("evaluate", snn, "--tasks", "sums", "--data", text, code=2).stderr
    assert "need --tasks" in run("evaluate", snn, "--data", text, "--fewshot", 3, code=2).stderr
    assert "models that read images" in run("evaluate", snn, "--data", text, "--limit", 3, code=1).stderr
    assert "names no task" in run("evaluate", snn, "--tasks", ",", code=2).stderr
    assert "is not a directory" in run("evaluate", snn, "--tasks", "sums", "--task-path", text, code=1).stderr
