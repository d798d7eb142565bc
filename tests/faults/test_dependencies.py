"""What is installed fits what pyproject.toml asks for, is licensed, and has no hole that is known."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[2]
_PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What a library or program under the Apache licence may import: no reader of ours inherits a duty to publish.
_FREE = (
    "apache",
    "mit",
    "bsd",
    "psf",
    "python software foundation",
    "isc",
    "mpl",
    "mozilla",
    "unlicense",
    "hpnd",
    "zlib",
)


def requirements() -> list[Requirement]:
    listed = [*_PROJECT["dependencies"], *(r for extra in _PROJECT["optional-dependencies"].values() for r in extra)]
    found = [Requirement(text) for text in listed]
    return [requirement for requirement in found if requirement.name != "fas"]


@pytest.mark.parametrize("requirement", sorted(set(map(str, requirements()))))
def test_installed_versions_lie_in_their_ranges(requirement: str) -> None:
    wanted = Requirement(requirement)
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        assert requirement not in _PROJECT["dependencies"], f"{wanted.name} is not installed"
        pytest.skip(f"{wanted.name} is of an extra that is not installed")
    assert wanted.specifier.contains(version, prereleases=True), f"{wanted.name} {version} is outside of {requirement}"


def test_licences_of_what_is_needed_are_free() -> None:
    for requirement in map(Requirement, _PROJECT["dependencies"]):
        about = metadata.metadata(requirement.name)
        stated = [about.get("License-Expression"), about.get("License"), *(about.get_all("Classifier") or ())]
        words = " ".join(text for text in stated if text and ("License" in text or "::" not in text)).lower()
        assert any(name in words for name in _FREE), f"{requirement.name}: {words[:100]!r}"
        assert "gpl" not in words.replace("lgpl", ""), requirement.name


def test_packages_fit_each_other() -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    ours = [line for line in done.stdout.splitlines() if any(line.startswith(f"{r.name} ") for r in requirements())]
    assert ours == []


@pytest.mark.slow
def test_no_known_vulnerability() -> None:
    program = shutil.which("pip-audit")
    if program is None:
        pytest.skip("pip-audit is not installed: pipx install pip-audit")
    site = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    done = subprocess.run(
        [program, "--path", str(site), "--format", "json", "--progress-spinner", "off"],
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    if not done.stdout.strip():
        pytest.skip(f"pip-audit found no service to ask: {done.stderr.strip()[-200:]}")
    audited = json.loads(done.stdout)["dependencies"]
    known = [entry for entry in audited if "vulns" in entry]
    # Where the service does not know the packages it reports no hole either: that is no audit.
    names = {requirement.name for requirement in map(Requirement, _PROJECT["dependencies"])}
    if not names & {entry["name"] for entry in known}:
        pytest.skip("pip-audit's service knows none of the packages: nothing was audited")
    assert [entry for entry in known if entry["vulns"]] == []
