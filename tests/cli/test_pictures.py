"""The program on models that read images: captions, answers, and text from one image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_pictures import git_processor, write_pictures
from tiny_vision_language import VISION_LANGUAGE

import fas
from fas.data import image_text
from fas.data.for_model import Sample, calibration_batches
from fas.data.image_text import load_pictures
from fas.evaluation.score import on_pictures
from fas.loading import load


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("git") / "dense"
    VISION_LANGUAGE["git"].build().save_pretrained(place)
    git_processor().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def git_snn(git: Path, pictures: tuple[Path, Path]) -> Path:
    loaded, place = load(str(git)), git.with_name("snn")
    batches = calibration_batches(loaded, str(pictures[0]), Sample(100, batch_size=2))
    fas.convert(loaded.model, fas.FAS(timesteps=4, neuron="signed_if"), calibration=batches)
    loaded.model.save_pretrained(place)
    loaded.need_processor().save_pretrained(place)
    return place


def test_calibration_reads_captions_and_answers(git: Path, pictures: tuple[Path, Path]) -> None:
    loaded = load(str(git))
    captions, questions = (calibration_batches(loaded, str(file), Sample(100, batch_size=2)) for file in pictures)
    assert [len(batch["input_ids"]) for batch in captions] == [2, 1]
    assert sorted(row for batch in captions for row in batch["input_ids"].tolist()) == [
        [1, 3, colour, 7] for colour in (4, 5, 6)
    ]
    assert questions[0]["input_ids"][:, :5].tolist() == [[1, 8, 9, 10, 11]] * 2
    # Four tokens of a caption reach a limit of four.
    assert len(calibration_batches(loaded, str(pictures[0]), Sample(4, batch_size=2))) == 1


def test_captions_are_scored(rows, git_snn: Path, pictures: tuple[Path, Path]) -> None:
    found = rows("evaluate", git_snn, "--data", pictures[0], "--timesteps", "2,4", "--max-new-tokens", 3)
    assert [row["quantity"] for row in found] == ["cider", "bleu", "exact_match", "spikes_per_neuron"] * 2
    assert [row["conditions"]["timesteps"] for row in found[::4]] == [2, 4]
    assert found[0]["conditions"]["samples"] == 3 and found[3]["value"] > 0


def test_pictures_of_the_hub_are_those_of_the_test_part(git: Path, pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, parts = [{"image": load_pictures(pictures[0])[0].opened(), "captions": "a b"}], []
    monkeypatch.setattr(image_text, "hub_rows", lambda source, split: parts.append(split) or rows)
    loaded = load(str(git))
    load_pictures("made/captions")
    on_pictures(loaded, "made/captions")
    fas.evaluate(loaded, "made/captions", max_new_tokens=1)
    assert parts == ["test"] * 3
    fas.evaluate(loaded, "made/captions", max_new_tokens=1, split="train")
    assert parts[3:] == ["train"]


def test_answers_are_scored(rows, git: Path, pictures: tuple[Path, Path]) -> None:
    options = ["--limit", 2, "--caption-prompt", "a {}", "--image-folder", pictures[1].parent]
    (row,) = rows("evaluate", git, "--data", pictures[1], *options)
    assert row["quantity"] == "exact_match" and row["conditions"]["network"] == "ann"
    assert (row["conditions"]["samples"], row["conditions"]["prompt"]) == (2, "a {}")


def test_a_table_of_captions(run, git: Path, pictures: tuple[Path, Path]) -> None:
    assert "exact_match" in run("evaluate", git, "--data", pictures[0], "--max-new-tokens", 2).stdout


@pytest.mark.parametrize("options", [["--image-folder", "."], ["--caption-prompt", "a"], ["--limit", "2"]])
def test_options_of_pictures_without_pictures(run, dense: Path, text: Path, options: list[str]) -> None:
    assert "models that read images" in run("evaluate", dense, "--data", text, *options, code=1).stderr


def test_text_from_an_image(run, rows, git_snn: Path, pictures: tuple[Path, Path]) -> None:
    arguments = ["generate", git_snn, "--image", pictures[0].with_name("red.png"), "--max-new-tokens", 4]
    (row,) = rows(*arguments, "--prompt", "what is this ?")
    assert row["conditions"]["new_tokens"] <= 4 and "what is this" not in row["conditions"]["text"]
    for schedule in ("layerwise", "online"):
        (alone,) = rows(*arguments, "--schedule", schedule)
        said = alone["conditions"]["text"].strip()
        assert said and run(*arguments, "--schedule", schedule, "--no-stream").stdout.strip() == said
        assert run(*arguments, "--schedule", schedule).stdout.replace("</s>", "").strip() == said


def test_an_image_for_a_model_of_text(run, snn: Path, pictures: tuple[Path, Path]) -> None:
    arguments = ["generate", snn, "-p", "ab", "--image", pictures[0].with_name("red.png")]
    assert "no processor of images and text" in run(*arguments, code=1).stderr


def test_an_image_that_is_not_there(run, git: Path) -> None:
    assert "no image" in run("generate", git, "--image", "missing.png", "--max-new-tokens", 2, code=1).stderr


def test_a_model_without_its_processor(run, git: Path, tmp_path: Path, pictures: tuple[Path, Path]) -> None:
    VISION_LANGUAGE["git"].build().save_pretrained(tmp_path / "bare")
    arguments = ["generate", tmp_path / "bare", "--image", pictures[0].with_name("red.png")]
    assert "has no tokenizer that can be read" in run(*arguments, code=1).stderr
    assert torch.is_grad_enabled()
