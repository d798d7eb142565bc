from __future__ import annotations

import shutil
from pathlib import Path


def test_card(run, snn: Path, dense: Path, text: Path, tmp_path: Path) -> None:
    place = tmp_path / "m"
    shutil.copytree(snn, place)
    files = []
    for name, *options in (("evaluate", "--limit-tokens", 128), ("energy", "--tokens", 128)):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(run(name, place, "--data", text, *options, "--json").stdout)
    shown = run("card", place, *files)
    card = (place / "README.md").read_text()
    assert shown.stdout.strip() == card.strip() and "hf upload" in shown.stderr
    assert "| perplexity |" in card and "## Energy" in card and "| 45nm | decode | memory |" in card
    assert str(tmp_path) not in card.replace(f"data {text}", "")
    run("card", place)
    assert (place / "README.md").read_text() == card
    assert "| perplexity |" in card and "perplexity" not in (snn / "README.md").read_text()
    (tmp_path / "bad.json").write_text('[{"quantity": "x", "value": "much", "unit": "1"}]')
    assert "no list of measurements" in run("card", place, tmp_path / "bad.json", code=1).stderr
    assert "holds no converted model" in run("card", dense, code=1).stderr
    (place / "README.md").write_text("mine")
    assert "was not written by fas" in run("card", place, code=1).stderr
