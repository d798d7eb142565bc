"""The pages: their Python runs, their commands and options exist, their links lead somewhere."""

import importlib
import platform
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fas
from fas import registry

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
# Pages that show code for a model of the hub are checked by eye.
RUN = ["docs/start.md", *sorted(f"docs/howto/{page.name}" for page in (ROOT / "docs" / "howto").glob("*.md"))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands() -> set[tuple[str, str]]:
    found = set()
    for page in PAGES:
        for line in re.findall(r"(?:^|`)fas ([a-z]+)([^#`\n]*)", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            found.add((line[0], ""))
            found.update((line[0], option) for option in re.findall(r"(?<!\S)--[\w-]+", line[1]))
    return found


def test_every_file_that_the_architecture_names_is_there():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`([\w/*-]+\.(?:py|toml|md)|[\w/]+/)`", page)) - {"neurons/mine.py"}
    assert len(names) > 50
    found = {
        name for name in names if (ROOT / name).exists() or [*(ROOT / "src" / "fas").glob(f"**/{name.strip('/')}")]
    }
    assert sorted(names - found) == []


def test_bars_in_the_reference_are_code():
    # Sphinx reads |x| as a name to put a text in for, and `make docs` fails.
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    names = re.findall(r"auto(?:class|function):: ([\w.]+)\.(\w+)", page)
    texts = {name: getattr(importlib.import_module(module), name).__doc__ for module, name in names}
    assert len(texts) > 30
    prose = {name: re.sub(r"``.*?``", "", text, flags=re.DOTALL) for name, text in texts.items()}
    assert [name for name, text in prose.items() if re.search(r"\|[^\s|][^|\n]*\|", text)] == []


@pytest.fixture
def own_plugins():
    """Undo what a page does to the folders where neurons and methods are looked for: no other test may see it."""
    import fas.methods
    import fas.neurons

    before = {package: list(package.__path__) for package in (fas.neurons, fas.methods)}
    modules = set(sys.modules)
    yield
    for package, paths in before.items():
        package.__path__[:] = paths
        for module in [key for key in set(sys.modules) - modules if key.startswith(f"{package.__name__}.")]:
            if not (sys.modules[module].__file__ or "").startswith(str(ROOT)):
                del sys.modules[module]


@pytest.mark.parametrize("page", RUN)
def test_the_python_of_a_page_runs(page, own_plugins):
    scope: dict[str, object] = {"__name__": "page"}
    code = blocks(ROOT / page, "python")
    assert code
    for block in code:
        exec(compile(block, page, "exec"), scope)


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    # The model in the package and a text at hand take the place of those of the hub.
    (code,) = blocks(ROOT / "README.md", "python")
    for hub, here in (('"HuggingFaceTB/SmolLM2-135M-Instruct"', '"embedded"'), ('"wikitext"', "TEXT")):
        assert code.count(hub) == 1
        code = code.replace(hub, here)
    code = code.replace('return_tensors="pt"', 'return_tensors="pt", return_token_type_ids=False')
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"TEXT": ["def f(x):\n    return x + 1\n" * 200]})
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(tmp_path / "smollm2-snn").sites


def test_the_readme_fits_on_a_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 75


def test_the_size_and_the_perplexity_of_the_embedded_model():
    loaded = fas.load("embedded")
    size = sum(parameter.numel() for parameter in loaded.model.parameters())
    assert f"{size / 1e6:.1f} million parameters" in (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    if platform.python_version() != "3.11.7":
        pytest.skip("the text is the standard library of the Python that runs")
    (row, *_) = fas.evaluate(loaded, "stdlib", tokens=496, window=256, stride=256)
    assert f"| dense, FP32 | {row.value:.2f} |" in (ROOT / "docs" / "energy.md").read_text(encoding="utf-8")


def test_the_levels_in_the_results():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| (\w+_\w+)( \(ReLU: no sign\))? \| ([\d /]+) \| ([\d /]+) \|", page)
    assert len(rows) == 12
    signed = True
    for name, unsigned, steps, levels in rows:
        # The digits below the rate code are at the same sites.
        signed = not unsigned if name == "signed_if" else signed
        neuron = registry.load("neurons", name)(signed=signed)
        assert [neuron.levels(int(t)) for t in steps.split(" / ")] == [int(n) for n in levels.split(" / ")], name


@pytest.mark.parametrize(("command", "option"), sorted(commands()))
def test_commands_and_options_exist(command, option):
    from fas.cli.main import app

    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert shown.exit_code == 0, f"no command fas {command}"
    assert option in re.sub(r"\x1b\[[0-9;]*m", "", shown.output)


def test_options_of_the_benchmark_exist():
    from benchmarks.suite.__main__ import app

    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    text = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"benchmarks\.suite ([^#`\n]*)", text)
    options = {option for line in lines for option in re.findall(r"(?<!\S)--[\w-]+", line)}
    assert options and options <= set(re.findall(r"--[\w-]+", re.sub(r"\x1b\[[0-9;]*m", "", shown)))


def test_public_names_exist():
    import fas

    for page in PAGES:
        for public in set(re.findall(r"\bfas\.([A-Za-z_]+)\(", page.read_text(encoding="utf-8"))):
            assert callable(getattr(fas, public)), f"{name(page)}: fas.{public}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists() or target.startswith("images/"), f"{name(page)} links to {target}"
