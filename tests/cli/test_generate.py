from __future__ import annotations

from pathlib import Path


def test_json_has_text_and_speed(rows, snn: Path) -> None:
    (row,) = rows("generate", snn, "--prompt", "ab", "--max-new-tokens", 5)
    assert row["unit"] == "tokens/s" and row["value"] > 0
    assert row["conditions"]["text"].startswith("ab")


def test_streaming_shows_the_same_text(run, rows, snn: Path) -> None:
    arguments = ["generate", snn, "--prompt", "ab", "--max-new-tokens", 8]
    (row,) = rows(*arguments)
    at_once = run(*arguments, "--no-stream").stdout
    assert row["conditions"]["text"].strip() == at_once.strip()
    assert run(*arguments).stdout.replace("<eos>", "").strip() == at_once.strip()


def test_the_seed_decides_what_is_drawn(rows, snn: Path) -> None:
    def draw(seed: int) -> str:
        options = ["--temperature", 2, "--top-p", 0.9, "--seed", seed]
        return str(rows("generate", snn, "--prompt", "ab", "--max-new-tokens", 12, *options)[0]["conditions"]["text"])

    assert draw(1) == draw(1) != draw(2)


def test_beams_and_steps_and_schedules(rows, snn: Path, caplog) -> None:
    arguments = ["generate", snn, "--prompt", "ab", "--max-new-tokens", 3, "--num-beams", 2, "--timesteps", 3]
    for schedule in ("layerwise", "online"):
        (row,) = rows(*arguments, "--schedule", schedule)
        assert (row["conditions"]["timesteps"], row["conditions"]["schedule"]) == (3, schedule)
        assert "T = 3 with the thresholds of T = 4" in caplog.text


def test_a_dense_model_generates_too(rows, dense: Path) -> None:
    (row,) = rows("generate", dense, "--prompt", "ab", "--max-new-tokens", 3)
    assert row["conditions"]["network"] == "ann"


def test_an_empty_prompt_is_refused(run, snn: Path) -> None:
    assert "empty" in run("generate", snn, "--prompt", "", code=1).stderr


def test_more_tokens_than_the_context_are_refused(run, snn: Path) -> None:
    said = run("generate", snn, "--prompt", "abcd", "--max-new-tokens", 100, code=1).stderr
    assert "context of 64" in said and "--max-new-tokens 60" in said


def test_a_classifier_generates_nothing(run, classifier: Path) -> None:
    assert "does not generate text" in run("generate", classifier, "--prompt", "good", code=1).stderr


def test_timesteps_of_a_dense_model_are_refused(run, dense: Path) -> None:
    assert "fas convert" in run("generate", dense, "--prompt", "a", "--timesteps", 2, code=1).stderr
