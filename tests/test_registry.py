import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fas import registry

PACKAGE = "registry_plugins"
FILES = {
    "__init__.py": "",
    "shapes/__init__.py": "",
    "shapes/round_disc.py": "class RoundDisc: ...",
    "shapes/square.py": (
        "from collections import OrderedDict\n"
        "from registry_plugins.shapes.round_disc import RoundDisc\n"
        "class _Corner: ...\n"
        "class Square(RoundDisc): ...\n"
        "Alias = RoundDisc\n"
    ),
    "shapes/two.py": "class First: ...\nclass Second: ...",
    "shapes/functions_only.py": "def area(): ...",
    "shapes/broken.py": "import a_package_that_does_not_exist",
    "shapes/_hidden.py": "class Hidden: ...",
    "shapes/nested/__init__.py": "class Nested: ...",
    "empty/__init__.py": "",
    "module.py": "",
}


@pytest.fixture(autouse=True)
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, text in FILES.items():
        path = tmp_path / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]


def test_available_lists_public_file_names_sorted():
    assert registry.available("shapes", PACKAGE) == [
        "broken",
        "functions_only",
        "round_disc",
        "square",
        "two",
    ]


def test_available_of_an_empty_kind_is_empty():
    assert registry.available("empty", PACKAGE) == []


def test_available_imports_no_plugin():
    registry.available("shapes", PACKAGE)
    assert not [name for name in sys.modules if name.startswith(f"{PACKAGE}.")]


def test_load_imports_only_the_module_asked_for():
    registry.load("shapes", "round_disc", PACKAGE)
    assert f"{PACKAGE}.shapes.broken" not in sys.modules


def test_a_file_dropped_into_the_folder_is_found(tmp_path: Path):
    (tmp_path / PACKAGE / "shapes" / "mine.py").write_text("class Mine: ...")
    assert "mine" in registry.available("shapes", PACKAGE)
    assert registry.load("shapes", "mine", PACKAGE).__name__ == "Mine"


@pytest.mark.parametrize("name", ["round_disc", "round-disc"])
def test_load_accepts_a_dash_for_an_underscore(name: str):
    assert registry.load("shapes", name, PACKAGE).__name__ == "RoundDisc"


def test_load_ignores_imported_and_private_classes():
    assert registry.load("shapes", "square", PACKAGE).__name__ == "Square"


@pytest.mark.parametrize("name", ["triangle", "", "_hidden", "nested", "shapes.square", "../module", "Square"])
def test_unknown_name_lists_the_available_ones(name: str):
    with pytest.raises(ValueError, match=r"no '.*' in registry_plugins\.shapes; available: .*round_disc, square"):
        registry.load("shapes", name, PACKAGE)


def test_unknown_name_of_an_empty_kind_says_none():
    with pytest.raises(ValueError, match="available: none"):
        registry.load("empty", "square", PACKAGE)


@pytest.mark.parametrize("kind", ["colours", "", "module", "shapes.nested", "no.such"])
def test_unknown_kind_lists_the_available_ones(kind: str):
    with pytest.raises(ValueError, match=r"no kind '.*' in registry_plugins; available: empty, shapes"):
        registry.available(kind, PACKAGE)


@pytest.mark.parametrize(("name", "found"), [("two", "First, Second"), ("functions_only", "none")])
def test_a_module_without_exactly_one_public_class_is_refused(name: str, found: str):
    with pytest.raises(TypeError, match=f"exactly one public class, found: {found}"):
        registry.load("shapes", name, PACKAGE)


def test_an_import_error_inside_a_plugin_is_not_swallowed():
    with pytest.raises(ModuleNotFoundError, match="a_package_that_does_not_exist"):
        registry.load("shapes", "broken", PACKAGE)
