"""Every example runs as it stands, in a process and a folder of its own, and says what it should."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import forked
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples"
# What must be installed beyond the package itself, and what the example must have printed.
EXAMPLES = {
    "convert_cnn": ((), "after step 8: "),
    "convert_language_model": ((), "ann: perplexity "),
    "energy_and_chip": ((), "spinnaker2: 5568 neurons, "),
    "nir_in_numpy": (("nir",), " spikes, 0 differ from the model's"),
    "own_neuron": ((), "bursts, online: error "),
    "serve_and_query": (("fastapi", "uvicorn", "openai"), "models: ['stdlib-snn']"),
}


def test_the_list_is_complete() -> None:
    assert sorted(EXAMPLES) == sorted(file.stem for file in FOLDER.glob("*.py"))
    for name in EXAMPLES:
        lines = (FOLDER / f"{name}.py").read_text().splitlines()
        assert len(lines) <= 60 and lines[0].startswith('"""')


def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = json.loads((FOLDER / "five_minutes.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    (tmp_path / "notebook.py").write_text(
        "\n\n".join(cells) + "\nprint({row.quantity: row.value for row in spiking})\n"
    )
    run = forked.run(tmp_path / "notebook.py", cwd=tmp_path, TMPDIR=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "worst site: " in run.stdout and "'spikes_per_neuron': " in run.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_runs(name: str, tmp_path: Path) -> None:
    packages, told = EXAMPLES[name]
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    run = forked.run(FOLDER / f"{name}.py", cwd=tmp_path, TMPDIR=tmp_path)
    assert run.returncode == 0, run.stderr
    assert told in run.stdout
