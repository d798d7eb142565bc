from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from simulators import SIMULATORS
from tiny_models import FAMILIES

import fas
from fas.errors import CheckpointError, FASError, MissingExtraError
from fas.exporting.blocks import blocks
from fas.exporting.folded import fold
from fas.exporting.nir import SETTINGS, export_nir, import_nir
from fas.surgery.replace import populations

nir = pytest.importorskip("nir", reason="nir is not installed: pip install 'fas[nir]'")

T = 6
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "signed": ("gpt2", {"neuron": "signed_if"}),
    "relu": ("opt", {"coverage": "mlp", "neuron": "signed_if"}),
    "online": ("opt", {"coverage": "mlp", "neuron": "soft_reset_if", "schedule": "online"}),
}


def converted(which: str) -> tuple[Any, Any]:
    family, options = OPTIONS[which]
    chosen = FAMILIES[family]
    model = fas.convert(chosen.build(), fas.FAS(timesteps=T, **options), calibration=[chosen.batch()])
    return model, chosen.batch(2, 7, seed=3)


@pytest.fixture(scope="module", params=OPTIONS)
def export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path, Any]:
    model, inputs = converted(request.param)
    place = tmp_path_factory.mktemp("nir") / request.param
    return model, inputs, place, export_nir(model, place, inputs, about={"model": "tiny"})


def test_every_block_is_checked_against_the_model(export: Any) -> None:
    model, _, _, checks = export
    assert [check.site for check in checks] == [site.path for site in model.sites]
    for check in checks:
        assert check.mismatches == 0 and 0 < check.spikes < check.compared
        # float32, differences of running means online.
        assert check.error < 1e-5


def test_graphs_are_chains_with_one_threshold(export: Any) -> None:
    model, _, place, _ = export
    sidecar = json.loads((place / "export.json").read_text())
    assert sidecar["model"] == "tiny" and sidecar["timesteps"] == T and set(sidecar["simulators"]) == set(SETTINGS)
    for entry in sidecar["blocks"]:
        graph = nir.read(str(place / entry["file"]))
        kinds = {name: type(node).__name__ for name, node in graph.nodes.items()}
        front = {} if entry["before"] is None else {"before": "Affine"}
        assert kinds == {"input": "Input", **front, "neurons": "IF", "layers": "Affine", "output": "Output"}
        neurons = graph.nodes["neurons"]
        assert (neurons.v_threshold == 1).all() and (neurons.r == 1).all()
        assert len(neurons.r) == entry["channels"] * (2 if entry["mirrored"] else 1)
        assert neurons.metadata["reset"] == "subtract" and len(neurons.metadata["v_init"]) == len(neurons.r)
        assert set(entry["layers"]) == set(next(s for s in model.sites if s.path == entry["site"]).layers)


def test_files_are_for_every_release_of_nir(export: Any) -> None:
    import h5py

    for file in export[2].glob("*.nir"):
        with h5py.File(file) as opened:
            # Up to 1.0.4 a potential to reset to makes the file unreadable.
            assert set(opened["node/nodes/neurons"]) == {"type", "r", "v_threshold", "metadata"}


def test_the_way_back(export: Any) -> None:
    """Parameters and folded arrays to the last bit, spikes too."""
    model, inputs, place, _ = export
    found, originals = import_nir(place), {block.path: block for block in blocks(model, inputs)}
    assert list(found) == list(originals)
    for path, exported in found.items():
        population, again = populations(model)[path], exported.population()
        for name in ("log_threshold", "v_init", "offset"):
            assert torch.equal(getattr(again, name), getattr(population, name).expand(population.channels))
        assert again.neuron == population.neuron
        one, other, third = fold(originals[path]), exported.folded, fold(exported.block)
        for name in ("v_init", "weight", "bias"):
            assert torch.equal(getattr(one, name), getattr(other, name))
            assert torch.equal(getattr(one, name), getattr(third, name))
        assert one.mirrored == other.mirrored == third.mirrored and (one.entry is None) == (third.entry is None)
        if one.entry is not None and third.entry is not None:
            assert all(map(torch.equal, one.entry, third.entry))
        trace, back = originals[path].trace, exported.block.trace
        assert trace is not None and back is not None and torch.equal(trace.spikes, back.spikes)


def test_imported_blocks_run_as_modules(export: Any) -> None:
    _, _, place, _ = export
    for exported in import_nir(place).values():
        block = exported.block
        if not block.even:
            continue
        assert block.trace is not None
        _, layers = block.modules()
        with torch.no_grad():
            answers = torch.cat([layer(block.trace.current[0]) for layer in layers], -1)
        # The same spikes times the same folded weights; float32 sums in another order.
        torch.testing.assert_close(answers, exported.output[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SIMULATORS)
@pytest.mark.filterwarnings("ignore")  # other projects' deprecations
def test_spikes_step_by_step_in_other_simulators(export: Any, name: str) -> None:
    _, _, place, _ = export
    for exported in import_nir(place).values():
        graph = nir.read(str(place / f"{exported.block.path}.nir"))
        received = exported.received.expand(T, *exported.received.shape[1:])
        with torch.no_grad():
            spikes, output = SIMULATORS[name](graph, received, exported.folded.v_init)
        assert torch.equal(spikes.to(torch.uint8), exported.spikes)
        output = output.mean(0, keepdim=True) if exported.block.even else output
        # float32, differences of running means online.
        torch.testing.assert_close(output, exported.output, rtol=1e-3, atol=1e-4 * float(exported.output.abs().max()))


def test_some_sites_only(tmp_path: Path) -> None:
    model, inputs = converted("signed")
    path = "transformer.h.1.mlp.c_proj"
    (check,) = export_nir(model, tmp_path / "one", inputs, sites=[path], rows=3)
    assert check.compared == T * 3 * 2 * 48
    assert {file.name for file in (tmp_path / "one").iterdir()} == {f"{path}.nir", "traces.safetensors", "export.json"}


def test_refused_neurons_leave_nothing_behind(tmp_path: Path) -> None:
    chosen = FAMILIES["gpt2"]
    model = fas.convert(chosen.build(), fas.FAS(timesteps=4, neuron="phase"), calibration=[chosen.batch()])
    with pytest.raises(FASError, match=r"site transformer\.h\.0\.attn\.c_attn: Phase sends the digits"):
        export_nir(model, tmp_path / "out", chosen.batch())
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fas\[nir\]'"):
        import_nir(tmp_path)


def test_damage_is_told(tmp_path: Path) -> None:
    model, inputs = converted("relu")
    place = tmp_path / "out"
    with pytest.raises(CheckpointError, match=r"is not an export: export\.json is missing"):
        import_nir(place)
    export_nir(model, place, inputs)
    sidecar = json.loads((place / "export.json").read_text())
    (place / "export.json").write_text(json.dumps({**sidecar, "format": 99}))
    with pytest.raises(CheckpointError, match="is of format 99"):
        import_nir(place)
    (place / "export.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        import_nir(place)
    (place / "export.json").write_text(json.dumps(sidecar))
    file = place / sidecar["blocks"][0]["file"]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"fc2\.nir is damaged or incomplete"):
        import_nir(place)
