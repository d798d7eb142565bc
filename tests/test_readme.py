import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

README = Path(__file__).parents[1] / "README.md"


def commands() -> list[str]:
    return re.findall(r"^fas (\w+) ", README.read_text(encoding="utf-8"), flags=re.MULTILINE)


def options() -> list[tuple[str, str]]:
    lines = re.findall(r"^fas (\w+) ([^#\n]*)", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [(name, option) for name, rest in lines for option in re.findall(r"--[\w-]+", rest)]


def test_readme_shows_commands():
    assert {"convert", "evaluate", "generate", "inspect", "calibrate", "finetune"} <= set(commands())


@pytest.mark.parametrize(("name", "option"), sorted(set(options())))
def test_options_in_the_readme_exist(name, option):
    from fas.cli.main import app

    shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert shown.exit_code == 0
    assert option in re.sub(r"\x1b\[[0-9;]*m", "", shown.output)


def test_public_names_in_the_readme_exist():
    import fas

    text = README.read_text(encoding="utf-8")
    for name in set(re.findall(r"\bfas\.([A-Za-z_]+)\(", text)):
        assert callable(getattr(fas, name)), name
