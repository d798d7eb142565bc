"""Any arguments whatever: a result, an error in words or a usage error, never a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fas.cli.main import app

# Those that serve until they are stopped, or measure for minutes.
_LONG = ("compare", "demo", "energy", "finetune", "report", "serve")
_SMALL = {
    "convert": ["--tokens", "64", "--window", "16"],
    "calibrate": ["--tokens", "64", "--window", "16"],
    "evaluate": ["--limit", "40"],
    "inspect": ["--test-tokens", "40"],
    "generate": ["--max-new-tokens", "2"],
}
_VALUES = (
    "./nowhere", "", ".", "/", "..", "x\x1b[31m", "[red]", "ünï", "a b", "no/such", "stdlib", "45nm", "loihi2",
    "/dev/null", "-1", "0", "1", "2", "1e9", "nan", "inf", "9" * 20, "1,2", "all", "fas", "cpu", "cuda", "meta", "snn",
    "nir", "fixed-point", "linear", "signed_if", "perplexity",
)  # fmt: skip
_root: Any = typer.main.get_command(app)


@st.composite
def command_lines(draw: st.DrawFn, commands: tuple[str, ...], places: list[str]) -> list[str]:
    """Return a command with its arguments and some options, whose values need not fit."""
    name = draw(st.sampled_from(commands))
    values = st.sampled_from([*places, *_VALUES]) | st.text(st.characters(exclude_characters="\0"), max_size=6)
    line = [name]
    for parameter in _root.get_command(None, name).params:
        if parameter.param_type_name == "argument":
            line += [draw(values)] if draw(st.integers(0, 9)) else []
        elif parameter.name != "help" and draw(st.integers(0, 3)) == 0:
            line.append(draw(st.sampled_from(parameter.opts)))
            line += [] if parameter.is_flag else [draw(values)]
    return [*line, *(_SMALL.get(name, []) if draw(st.integers(0, 3)) else [])]


def held(line: list[str]) -> None:
    ended = CliRunner().invoke(app, line)
    assert isinstance(ended.exception, SystemExit | None), (line, ended.exception)
    assert ended.exit_code in (0, 1, 2)
    if ended.exit_code == 1:
        assert ended.stderr.splitlines()[-1].startswith("error: "), (line, ended.stderr)


@pytest.fixture
def places(dense: Path, snn: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    # Whatever is written by chance is written here.
    monkeypatch.chdir(tmp_path)
    return [str(dense), str(snn), str(text), "out", "out/deep"]


_SHORT = tuple(name for name in _root.list_commands(None) if name not in _LONG)


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_arguments(places: list[str], data: st.DataObject) -> None:
    held(data.draw(command_lines(_SHORT, places)))


@pytest.mark.slow
@settings(max_examples=1500, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_many_arguments(places: list[str], data: st.DataObject) -> None:
    held(data.draw(command_lines(_SHORT, places)))


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(st.lists(st.text(st.characters(exclude_characters="\0"), max_size=5) | st.sampled_from(_VALUES), max_size=4))
def test_words_that_are_no_command(line: list[str]) -> None:
    ended = CliRunner().invoke(app, line)
    assert isinstance(ended.exception, SystemExit | None), (line, ended.exception)
