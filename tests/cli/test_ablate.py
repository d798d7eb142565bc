from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def other(text: Path, tmp_path: Path) -> Path:
    """Held-out text."""
    place = tmp_path / "other.txt"
    place.write_text(text.read_text()[::-1])
    return place


def test_a_row_for_every_part(rows, dense: Path, text: Path, other: Path) -> None:
    found = rows(
        "ablate", dense, "--data", text, "--test-data", other, "--tokens", 512, "--test-tokens", 256,
        "--window", 32, "--timesteps", 4, "--coverage", "mlp",
    )  # fmt: skip
    values = {row["conditions"].get("plan"): row["value"] for row in found if row["quantity"] == "perplexity"}
    assert list(values) == [None, "none (maximum)", "coarse", "coarse + fine", "coarse + fine + losses"]
    assert len({values[part] for part in values}) == len(values), "two parts of the calibration do the same"
    assert {row["conditions"]["coverage"] for row in found if "plan" in row["conditions"]} == {"mlp"}
    assert {row["conditions"]["timesteps"] for row in found if "plan" in row["conditions"]} == {4}


def test_what_is_varied_is_not_an_option(run, dense: Path, text: Path, other: Path) -> None:
    message = run("ablate", dense, "--data", text, "--test-data", other, "--no-fine", code=1).stderr
    assert "--fine is what fas ablate varies" in message


def test_calibration_data_is_not_measured_on(run, dense: Path, text: Path) -> None:
    assert "--test-data" in run("ablate", dense, "--data", text, code=1).stderr


def test_a_converted_model(run, snn: Path, text: Path, other: Path) -> None:
    message = run("ablate", snn, "--data", text, "--test-data", other, code=1).stderr
    assert "is converted already" in message
