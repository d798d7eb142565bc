"""The rules on the shape of the source tree that a reader relies on."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src" / "fas"
MODULES = sorted(SOURCE.rglob("*.py"))

LONGEST = 400  # lines
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
