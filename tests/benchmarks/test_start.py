from __future__ import annotations

import subprocess

import pytest
from benchmarks.start import lines, processor_time


def test_what_is_run_is_the_program() -> None:
    from typer.testing import CliRunner

    from fas.cli.main import app

    found = lines("somewhere")
    assert found["fas inspect"][-2:] == ["inspect", "somewhere"]
    assert CliRunner().invoke(app, found["fas --help"][2:]).exit_code == 0


def test_a_command_that_fails_is_no_figure() -> None:
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        processor_time(["-c", "raise SystemExit(3)"])
