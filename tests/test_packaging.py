"""The package as it is installed: built, put into an environment without extras, and used."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
# Installed beside the package, and hidden from it unless one of its own dependencies needs it.
_BLOCKER = """
import importlib.machinery, importlib.metadata, re, sys


def _needed(name, seen):
    name = re.sub("[-_.]+", "-", name).lower()
    if name in seen:
        return seen
    seen.add(name)
    try:
        requires = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return seen
    for line in requires:
        if "extra ==" not in line:
            _needed(re.match("[A-Za-z0-9._-]+", line)[0], seen)
    return seen


_all = importlib.metadata.packages_distributions()
_seen = {"pip", "setuptools"}
_needed("fas", _seen)
_hidden = {
    top for top, names in _all.items() if not any(re.sub("[-_.]+", "-", name).lower() in _seen for name in names)
}


class _Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in _hidden else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = _Finder
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the wheel and the source archive."""
    pytest.importorskip("hatchling", reason="hatchling is not installed: pip install 'fas[test]'")
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(out)], cwd=ROOT, check=True)
    return out


@pytest.fixture(scope="module")
def python(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and what it depends on."""
    place = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    found = place / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    install = [sys.executable, "-m", "pip", "--python", str(found), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    (packages,) = place.glob("lib/python*/site-packages")
    # Dependencies are those of this environment: torch alone would be a gigabyte to fetch.
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others) + "\n")
    (packages / "hide_extras.py").write_text(_BLOCKER)
    (packages / "zz_hide.pth").write_text("import hide_extras\n")
    return found


def _run(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [str(python), *arguments]
    return subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_both_archives_hold_what_is_needed(built: Path) -> None:
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    needed = {"py.typed", "__init__.pyi", "reporting/page.html", "assets/stdlib-gpt2/model.safetensors"}
    assert needed <= {name.removeprefix("fas/") for name in zipfile.ZipFile(wheel).namelist()}
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/fas/{name}" for name in needed} <= inside
    assert {"LICENSE", "README.md", "CITATION.cff", "pyproject.toml"} <= inside


@pytest.mark.slow
def test_without_extras_the_package_works_or_names_the_extra(python: Path, tmp_path: Path) -> None:
    where = _run(python, tmp_path, "-c", "import fas; print(fas.__file__)")
    assert where.returncode == 0 and str(python.parents[1]) in where.stdout, where.stderr
    assert _run(python, tmp_path, "-c", "import matplotlib").returncode == 1
    program = str(python.parent / "fas")
    assert "convert" in subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    small = ["--timesteps", "4", "--coverage", "mlp", "--tokens", "512", "--test-tokens", "512"]
    demo = subprocess.run([program, "demo", *small], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert demo.returncode == 0, demo.stderr[-2000:]
    assert "pip install 'fas[plot]'" in demo.stdout and "it writes:" in demo.stdout
    refused = _run(python, tmp_path, program, "convert", "embedded", "out", "--data", "wikitext", "--tokens", "512")
    assert refused.returncode == 1 and "pip install 'fas[data]'" in refused.stderr


def test_the_citation_is_of_this_release() -> None:
    from fas import __version__

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0" and cited["version"] == __version__ and cited["license"] == "Apache-2.0"
    assert {"title", "message", "authors", "type"} <= set(cited)


def test_issue_templates_are_complete() -> None:
    files = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    forms = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in files if file.name != "config.yml"]
    assert len(forms) >= 2
    for form in forms:
        assert form["name"] and form["description"]
        labels = [field["attributes"]["label"] for field in form["body"] if field["type"] != "markdown"]
        assert len(labels) == len(set(labels)) > 0
