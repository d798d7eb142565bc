from __future__ import annotations

import json
from pathlib import Path

import pytest

QUICK = ["--no-memory", "--no-kernels", "--no-growth", "--repeats", 2, "--prompt", 6, "--new-tokens", 2, "--tokens", 32]


@pytest.fixture(autouse=True)
def quick_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    from fas.bench import roofline

    monkeypatch.setattr(roofline, "measure", lambda device: roofline.Roofline(1e9, 1e9, 1e9))


def test_rows_of_every_subject(rows, dense: Path) -> None:
    found = rows(
        "bench", "--sizes", dense, "--subjects", "collapsed,stepped", "--batch", "1,2", "--timesteps", 2, *QUICK
    )
    speeds = [row for row in found if row["quantity"] == "decode.speed"]
    assert [(row["conditions"]["batch"], row["conditions"]["subject"]) for row in speeds] == [
        (batch, subject) for batch in (1, 2) for subject in ("dense", "collapsed", "stepped")
    ]
    assert speeds[0]["value"] == 1.0 and speeds[1]["conditions"]["timesteps"] == 2
    assert {"processor", "commit", "threads"} <= speeds[0]["conditions"].keys()
    # What follows from a limit is no measurement.
    assert {row["origin"] for row in found if row["conditions"].get("subject") == "roofline-int8"} == {"estimated"}


def test_tables_file_and_plots(run, dense: Path, tmp_path: Path) -> None:
    result = run("bench", "--sizes", dense, "--subjects", "stepped", "--batch", 1, *QUICK, "--out", tmp_path / "out")
    assert "prefill tok/s" in result.stdout and "stepped" in result.stdout
    document = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert document["machine"]["threads"] >= 1 and "load_at_end" in document["machine"]
    assert {row["quantity"] for row in document["rows"]} >= {"prefill", "decode", "latency", "calibration"}
    assert document["rows"][0]["conditions"]["command"].startswith("fas bench")
    assert (tmp_path / "out" / "speed-gpt2.svg").is_file() and (tmp_path / "out" / "speed-gpt2.png").is_file()


def test_an_interrupted_run_keeps_what_it_has(
    run, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fas.bench.suite import Suite

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Suite, "_decode", interrupted)
    out = tmp_path / "out"
    arguments = ["bench", "--sizes", dense, "--subjects", "collapsed", "--batch", 1, *QUICK, "--out", out]
    result = run(*arguments, code=130)
    assert "interrupted" in result.stderr and "collapsed" in result.stdout
    quantities = {row["quantity"] for row in json.loads((out / "bench.json").read_text())["rows"]}
    assert "prefill" in quantities and "latency" not in quantities
    assert (out / "speed-gpt2.png").is_file()
    # Rows are printed too, and the exit code tells.
    assert json.loads(run(*arguments, "--json", code=130).stdout)


def test_neurons_and_growth_are_shown(run, monkeypatch: pytest.MonkeyPatch) -> None:
    from fas.bench import growth, neuron_kernel

    measure = neuron_kernel.measure

    def small(roofline, **options):
        return measure(roofline, **{**options, "rows": 5, "channels": 7})

    monkeypatch.setattr(neuron_kernel, "measure", small)
    monkeypatch.setattr(growth, "AXES", {"depth": (1, 2)})
    shown = run(
        "bench", "--sizes", "", "--subjects", "collapsed", "--no-memory", "--repeats", 1, "--timesteps", 2
    ).stdout
    assert "Neurons by themselves" in shown and "× loop" in shown
    assert "Growth with depth" in shown and "exponent" in shown


def test_bad_input(run, dense: Path) -> None:
    assert "no subject fast" in run("bench", "--subjects", "fast", code=1).stderr
    assert "no size 'huge'" in run("bench", "--sizes", "huge", *QUICK, code=1).stderr
    assert "below 1" in run("bench", "--batch", "0", code=2).stderr
    assert "device 'brain' cannot be used" in run("bench", "--device", "brain", code=1).stderr
    assert "takes 64 tokens" in run("bench", "--sizes", dense, *QUICK, "--prompt", 63, code=1).stderr


def test_what_is_absent_is_shown_with_its_reason(run, dense: Path) -> None:
    shown = run("bench", "--sizes", dense, "--subjects", "spikingjelly-qwen2", "--batch", 1, *QUICK).stdout
    assert "Not measured" in shown and "this is gpt2" in shown
