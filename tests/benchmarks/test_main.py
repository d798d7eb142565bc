"""The program: its rows, tables, file and plots."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks.suite import growth, neuron_kernel, roofline
from benchmarks.suite.__main__ import app
from benchmarks.suite.suite import Suite
from typer.testing import CliRunner, Result

Run = Callable[..., Result]

QUICK = ["--no-memory", "--no-kernels", "--no-growth", "--repeats", 2, "--prompt", 6, "--new-tokens", 2, "--tokens", 32]


@pytest.fixture(autouse=True)
def quick_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "measure", lambda device: roofline.Roofline(1e9, 1e9, 1e9))


@pytest.fixture
def run() -> Run:
    """Run the program with arguments, and hold it to an exit code."""

    def invoke(*arguments: Any, code: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return invoke


def test_rows_of_every_subject(run: Run, directory: Path) -> None:
    asked = ["--sizes", directory, "--subjects", "collapsed,stepped", "--batch", "1,2", "--timesteps", 2]
    found = json.loads(run(*asked, *QUICK, "--json").stdout)
    speeds = [row for row in found if row["quantity"] == "decode.speed"]
    assert [(row["conditions"]["batch"], row["conditions"]["subject"]) for row in speeds] == [
        (batch, subject) for batch in (1, 2) for subject in ("dense", "collapsed", "stepped")
    ]
    assert speeds[0]["value"] == 1.0 and speeds[1]["conditions"]["timesteps"] == 2
    assert {"processor", "commit", "threads"} <= speeds[0]["conditions"].keys()
    # What follows from a limit is no measurement.
    assert {row["origin"] for row in found if row["conditions"].get("subject") == "roofline-int8"} == {"estimated"}


def test_tables_file_and_plots(run: Run, directory: Path, tmp_path: Path) -> None:
    result = run("--sizes", directory, "--subjects", "stepped", "--batch", 1, *QUICK, "--out", tmp_path / "out")
    assert "prefill tok/s" in result.stdout and "stepped" in result.stdout
    document = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert document["machine"]["threads"] >= 1 and "load_at_end" in document["machine"]
    assert {row["quantity"] for row in document["rows"]} >= {"prefill", "decode", "latency", "calibration"}
    assert document["rows"][0]["conditions"]["command"].startswith("python -m benchmarks.suite --sizes")
    assert (tmp_path / "out" / "speed-tiny.svg").is_file() and (tmp_path / "out" / "speed-tiny.png").is_file()


def test_an_interrupted_run_keeps_what_it_has(
    run: Run, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Suite, "_decode", interrupted)
    out = tmp_path / "out"
    arguments = ["--sizes", directory, "--subjects", "collapsed", "--batch", 1, *QUICK, "--out", out]
    result = run(*arguments, code=130)
    assert "interrupted" in result.stderr and "collapsed" in result.stdout
    quantities = {row["quantity"] for row in json.loads((out / "bench.json").read_text())["rows"]}
    assert "prefill" in quantities and "latency" not in quantities
    assert (out / "speed-tiny.png").is_file()
    # Rows are printed too, and the exit code tells.
    assert json.loads(run(*arguments, "--json", code=130).stdout)


def test_neurons_and_growth_are_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = neuron_kernel.measure

    def small(roofline, **options):
        return measure(roofline, **{**options, "rows": 5, "channels": 7})

    monkeypatch.setattr(neuron_kernel, "measure", small)
    monkeypatch.setattr(growth, "AXES", {"depth": (1, 2)})
    shown = run("--sizes", "", "--subjects", "collapsed", "--no-memory", "--repeats", 1, "--timesteps", 2).stdout
    assert "Neurons by themselves" in shown and "× loop" in shown
    assert "Growth with depth" in shown and "exponent" in shown


def test_bad_input(run: Run, directory: Path) -> None:
    assert "no subject fast" in run("--subjects", "fast", code=1).stderr
    assert "no size 'huge'" in run("--sizes", "huge", *QUICK, code=1).stderr
    assert "below 1" in run("--batch", "0", code=2).stderr
    assert "device 'brain' cannot be used" in run("--device", "brain", code=1).stderr
    assert "takes 64 tokens" in run("--sizes", directory, *QUICK, "--prompt", 63, code=1).stderr
