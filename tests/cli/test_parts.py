"""Evaluations that are stopped in the middle of a part: the batches before are not done again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertForSequenceClassification, GPT2LMHeadModel


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fas"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Count the calls of a model from now on; one of them kills."""

    def count(cls: type, last: int | None = None) -> list[int]:
        # The plain class stands in place of what an earlier count has put there.
        forward = originals.setdefault(cls, cls.forward)
        seen: list[int] = []

        def counted(self: Any, *arguments: Any, **named: Any) -> Any:
            if len(seen) == last:
                raise Killed
            seen.append(1)
            return forward(self, *arguments, **named)

        monkeypatch.setattr(cls, "forward", counted)
        return seen

    originals: dict[type, Any] = {}
    return count


def timeless(result: Any) -> Any:
    return json.loads(result.stdout)


def check(run: Any, calls: Any, cache: Path, cls: type, command: list[Any]) -> None:
    seen = calls(cls)
    whole, usual = timeless(run(*command)), len(seen)
    assert usual > 3 and not list(cache.glob("*"))
    # Stopped twice, at other places; the calls before the first stop are whole batches of a part or of several.
    for last in (usual // 3, usual // 3):
        calls(cls, last)
        with pytest.raises(Killed):
            run(*command)
    assert len(list(cache.glob("*.jsonl"))) == 1
    seen = calls(cls)
    again = run(*command)
    assert "resuming: " in again.stderr and "parts are done" in again.stderr
    assert timeless(again) == whole
    # Probing apart, which a command does each time, nothing is done twice.
    assert len(seen) <= usual - 2 * (usual // 3) + 2
    assert not list(cache.glob("*"))


@pytest.mark.parametrize("timesteps", ["4", "2,4"])
def test_perplexity(run, calls, cache: Path, snn: Path, text: Path, timesteps: str) -> None:
    command = ["evaluate", snn, "--data", text, "--window", 16, "--test-tokens", 256, "--batch-size", 4, "--json"]
    check(run, calls, cache, GPT2LMHeadModel, [*command, "--timesteps", timesteps])


def test_dense_perplexity(run, calls, cache: Path, dense: Path, text: Path) -> None:
    command = ["evaluate", dense, "--data", text, "--window", 16, "--test-tokens", 256, "--batch-size", 4, "--json"]
    check(run, calls, cache, GPT2LMHeadModel, command)


def test_classifier_and_glue(run, calls, cache: Path, classifier: Path, table: Path, tmp_path: Path) -> None:
    run("convert", classifier, tmp_path / "snn", "--data", table, "--timesteps", 4)
    command = ["evaluate", tmp_path / "snn", "--batch-size", 2, "--json"]
    check(run, calls, cache, BertForSequenceClassification, [*command, "--data", table])
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "dev.tsv").write_text(table.read_text())
    command += ["--tasks", "sst2", "--task-path", tmp_path]
    check(run, calls, cache, BertForSequenceClassification, command)


@pytest.mark.parametrize("network", ["snn", pytest.param("dense", marks=pytest.mark.slow)])
def test_tasks(
    run, calls, cache: Path, snn: Path, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    harness = pytest.importorskip("fas.evaluation.harness", reason="lm-eval is not installed: pip install 'fas[eval]'")
    # A stretch is a handful of requests here.
    monkeypatch.setattr(harness, "STRETCH", 4)
    lines = [{"context": f"{i} bottles of beer on the", "continuation": "wall"} for i in range(12)]
    (tmp_path / "last.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = [{"text": f"{i} bottles of beer on the wall"} for i in range(8)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in texts))
    model = snn if network == "snn" else dense
    command = ["evaluate", model, "--tasks", "last,texts", "--task-path", tmp_path, "--batch-size", 4, "--json"]
    check(run, calls, cache, GPT2LMHeadModel, command)


def test_another_model_is_not_taken_for_the_same(
    run, calls, cache: Path, snn: Path, text: Path, tmp_path: Path
) -> None:
    import shutil

    place = tmp_path / "snn"
    shutil.copytree(snn, place)
    command = ["evaluate", place, "--data", text, "--window", 16, "--test-tokens", 256, "--batch-size", 4, "--json"]
    calls(GPT2LMHeadModel, 3)
    with pytest.raises(Killed):
        run(*command)
    (place / "model.safetensors").touch()
    (place / "model.safetensors").write_bytes((snn / "model.safetensors").read_bytes())
    calls(GPT2LMHeadModel)
    assert "resuming" not in run(*command).stderr


def test_a_cache_that_cannot_be_written_is_said_once(
    run, snn: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    command = ["evaluate", snn, "--data", text, "--window", 16, "--test-tokens", 256, "--batch-size", 4, "--json"]
    assert run(*command).stderr.count("a killed run would start from the beginning") == 1
