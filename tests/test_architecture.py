"""The rules on the shape of the source tree that a reader relies on."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src" / "fas"
MODULES = sorted(SOURCE.rglob("*.py"))

LONGEST = 400  # lines
LINES = 29_791  # of the whole package
LINES_OF_CLI = 2_500
NAMES_THAT_HIDE_AN_IDEA = {
    "util",
    "utils",
    "helper",
    "helpers",
    "common",
    "base",
    "manager",
    "misc",
}


def test_the_tree_was_found():
    assert SOURCE / "types.py" in MODULES


def test_every_folder_with_modules_is_a_package():
    # import-linter skips folders without __init__.py: their imports would go unchecked.
    folders = {path.parent for path in MODULES}
    assert {folder for folder in folders if not (folder / "__init__.py").is_file()} == set()


def test_no_file_is_longer_than_one_idea():
    lengths = {path.relative_to(SOURCE): len(path.read_text().splitlines()) for path in MODULES}
    assert {path: length for path, length in lengths.items() if length > LONGEST} == {}


def test_no_name_hides_an_idea():
    paths = [path.relative_to(SOURCE) for path in MODULES]
    vague = [
        path for path in paths if {part.strip("_") for part in path.with_suffix("").parts} & NAMES_THAT_HIDE_AN_IDEA
    ]
    assert vague == []


# The registry looks the class up by the name of its file.
@pytest.mark.parametrize("kind", ["methods", "neurons", "stages"])
def test_a_plugin_is_one_public_class_in_one_file(kind):
    for path in sorted((SOURCE / kind).glob("[!_]*.py")):
        classes = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
        assert len([name for name in classes if not name.startswith("_")]) == 1, path.name


def test_the_library_imports_no_benchmark():
    uses = re.compile(r"^\s*(from|import) benchmarks", re.MULTILINE)
    assert [path.relative_to(SOURCE) for path in MODULES if uses.search(path.read_text())] == []


def test_the_command_line_stays_a_command_line():
    lines = {path: len(path.read_text().splitlines()) for path in MODULES}
    assert sum(lines.values()) <= LINES
    assert sum(count for path, count in lines.items() if SOURCE / "cli" in path.parents) <= LINES_OF_CLI
