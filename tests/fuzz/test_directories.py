"""Model directories and exports with edited files: read, or refused with an error of this library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import edited_json, edited_safetensors
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fas.errors import FASError
from fas.loading import load
from fas.storage.sharded import Sharded

few = settings(max_examples=20, suppress_health_check=list(HealthCheck))
# The long run of make test-all.
many = settings(max_examples=400, suppress_health_check=list(HealthCheck))


def attempt(*readers: Callable[[], Any]) -> None:
    for read in readers:
        try:
            read()
        except FASError as error:
            assert str(error)


def weights(place: Path, data: st.DataObject) -> None:
    content = (place / "model.safetensors").read_bytes()
    copied = place.with_name("copied")
    shutil.copytree(place, copied, dirs_exist_ok=True)
    (copied / "SHA256SUMS").unlink(missing_ok=True)
    (copied / "model.safetensors").write_bytes(data.draw(edited_safetensors(content)))

    def stream() -> None:
        sharded = Sharded(copied)
        sharded.load(sharded.index)

    attempt(lambda: load(str(copied)), stream)


def configurations(place: Path, data: st.DataObject) -> None:
    copied = place.with_name("copied")
    shutil.copytree(place, copied, dirs_exist_ok=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if data.draw(st.booleans()):
            (copied / name).write_text(json.dumps(data.draw(edited_json(json.loads((place / name).read_text())))))
    attempt(lambda: load(str(copied)))


@pytest.fixture(params=["dense", "snn"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.copytree(request.getfixturevalue(request.param), tmp_path / "model")
    return tmp_path / "model"


@few
@given(st.data())
def test_headers_of_safetensors(place: Path, data: st.DataObject) -> None:
    weights(place, data)


@few
@given(st.data())
def test_configurations(place: Path, data: st.DataObject) -> None:
    configurations(place, data)


@pytest.mark.slow
@many
@given(st.data())
def test_many_headers_of_safetensors(place: Path, data: st.DataObject) -> None:
    weights(place, data)


@pytest.mark.slow
@many
@given(st.data())
def test_many_configurations(place: Path, data: st.DataObject) -> None:
    configurations(place, data)


@pytest.fixture(scope="session")
def nir(run, snn: Path, text: Path, folder: Path) -> Path:
    run("export", snn, "--to", "nir", "--out", folder / "nir", "--data", text)
    return folder / "nir"


@pytest.fixture(scope="session")
def whole(run, snn: Path, text: Path, folder: Path) -> Path:
    run("export", snn, "--to", "fixed-point", "--out", folder / "whole.safetensors", "--data", text)
    return folder / "whole.safetensors"


@few
@given(st.data())
def test_exports(nir: Path, whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    from fas.exporting.fixed_point import load_fixed_point
    from fas.exporting.nir import import_nir

    copied = tmp_path / "nir"
    shutil.copytree(nir, copied, dirs_exist_ok=True)
    sidecar = json.loads((nir / "export.json").read_text())
    (copied / "export.json").write_text(json.dumps(data.draw(edited_json(sidecar))))
    with safe_open(whole, framework="pt") as opened:
        about = json.loads(opened.metadata()["fixed_point"])
    said = json.dumps(data.draw(edited_json(about)))
    save_file(load_file(whole), tmp_path / "whole.safetensors", {"fixed_point": said})
    edited = tmp_path / "edited.safetensors"
    edited.write_bytes(data.draw(edited_safetensors(whole.read_bytes())))
    attempt(
        lambda: import_nir(copied),
        lambda: load_fixed_point(tmp_path / "whole.safetensors"),
        lambda: load_fixed_point(edited),
    )
