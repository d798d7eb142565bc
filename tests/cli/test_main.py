from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from fas import __version__, registry
from fas.cli.program import failures as _failures


def test_help_names_every_command_and_imports_no_heavy_library() -> None:
    # A process of its own: this one has torch.
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from fas.cli.main import app\n"
        "for arguments in (['--help'], ['convert', '--help'], ['finetune', '--help']):\n"
        "    result = CliRunner().invoke(app, arguments)\n"
        "    assert result.exit_code == 0, result.output\n"
        "    print(result.stdout)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    # Wide enough that no option's name is cut.
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    for name in registry.available("cli"):
        assert name == "main" or name in done.stdout
    # Fields of the method are options of the command.
    assert "--replace-activation" in done.stdout and "--granularity" in done.stdout
    assert "--omega-weight" not in done.stdout


def test_help_shows_the_options_of_the_method_named(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = run("convert", "--method", "rate_norm", "--help").stdout
    assert "--omega-weight" in shown and "--encode-image" in shown and "--spike-price" not in shown
    assert shown == run("convert", "--help", "--method=rate_norm").stdout
    # Of its own document, and of that of the class it inherits from.
    assert "must be off: an image of both signs" in shown and "shell patterns of layers to leave dense" in shown


def test_an_option_of_another_method_names_those_that_have_it(run) -> None:
    said = " ".join(run("convert", "a", "b", "--percentile", 99, code=2).stderr.replace("│", " ").split())
    assert "--percentile is an option of method qcfs_only, threshold_balancing, which fas lacks" in said


def test_version(run) -> None:
    assert run("--version").stdout == f"fas {__version__}\n"


def test_no_command_shows_help(run) -> None:
    assert "convert" in run(code=2).output


def test_unknown_command_and_option_are_usage_errors(run) -> None:
    run("fly", code=2)
    run("convert", "a", "b", "--warp", "9", code=2)


def test_errors_are_one_line_on_stderr(run) -> None:
    result = run("evaluate", "./nowhere", "--data", "x.txt", code=1)
    assert result.stdout == ""
    assert result.stderr.startswith("error: no directory or .gguf file ./nowhere")
    assert result.stderr.count("\n") == 1


def test_unknown_model_of_the_hub_is_short(run) -> None:
    result = run("inspect", "no-such-model-anywhere", code=1)
    assert "no-such-model-anywhere" in result.stderr
    assert result.stderr.count("\n") == 1 and len(result.stderr) < 500


def test_debug_shows_the_traceback(run) -> None:
    from typer.testing import CliRunner

    from fas.cli.main import app
    from fas.errors import CheckpointError

    result = CliRunner().invoke(app, ["--debug", "inspect", "./nowhere"])
    assert isinstance(result.exception, CheckpointError)


def test_an_interrupt_says_so(monkeypatch: pytest.MonkeyPatch, run) -> None:
    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fas.loading.load", interrupted)
    result = run("inspect", "embedded", code=130)
    assert result.stderr.startswith("interrupted")


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch, run) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device", "/data/model")

    monkeypatch.setattr("fas.loading.load", full)
    assert "no space left on the disk for /data/model" in run("inspect", "embedded", code=1).stderr


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from fas.cli.main import app

    def wrong(*arguments: object, **named: object) -> None:
        raise KeyError("bug")

    monkeypatch.setattr("fas.loading.load", wrong)
    assert isinstance(CliRunner().invoke(app, ["inspect", "embedded"]).exception, KeyError)


def test_full_disk_message_of_the_weights_writer() -> None:
    error = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert _failures.message(error).startswith("no space left on the disk")


@pytest.mark.parametrize(
    "command",
    [
        ("convert", "@", "out"),
        ("convert", "@", "out", "--stream"),
        ("calibrate", "@"),
        ("finetune", "@", "out"),
        ("evaluate", "@"),
        ("compare", "@"),
        ("energy", "@"),
        ("generate", "@", "--prompt", "a"),
        ("inspect", "@"),
        ("export", "@", "--to", "nir", "--out", "out"),
        ("serve", "@"),
        ("report", "@", "--out", "out"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("guarded", [True, False])
def test_every_command_refuses_another_quantisation_method(run, snn, tmp_path, command, guarded) -> None:
    # An older release wrote no guard.
    directory = shutil.copytree(snn, tmp_path / "typo")
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "fass"
    if not guarded:
        config.pop("transformers_weights", None)
    (directory / "config.json").write_text(json.dumps(config))
    text = tmp_path / "text.txt"
    text.write_text("a line of text\n" * 400)
    words = [str({"@": directory, "out": tmp_path / "out"}.get(word, word)) for word in command]
    data = [] if command[0] in ("generate", "serve", "export") else ["--data", text]
    said = run(*words, *data, code=1).stderr
    assert "quant_method 'fass'" in said or "is converted or quantised already" in said
    assert not (tmp_path / "out").exists()
