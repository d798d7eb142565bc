"""What the audit of dependencies says: nothing known is not the same as nothing asked."""

import importlib.util
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "tools" / "audit.py"
CLEAN = {"name": "a", "version": "1", "vulns": []}
FLAWED = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        (
            [CLEAN, {"name": "fas", "skip_reason": "Dependency not found on PyPI"}],
            0,
            "1 of 1 packages audited, 0 findings",
        ),
        ([CLEAN, FLAWED], 1, "b 2: PYSEC-1 (mended in 2.1)\n2 of 2 packages audited, 1 findings"),
        ([CLEAN, UNKNOWN], 2, "1 of 2 packages audited, 0 findings\nnot audited, .* cannot be reached: c"),
        ([FLAWED, UNKNOWN], 1, "1 of 2 packages audited, 1 findings"),
        ([], 2, "0 of 0 packages audited"),
    ],
)
def test_the_verdict(packages, code, said):
    spec = importlib.util.spec_from_file_location("audit", SOURCE)
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    found = audit.verdict({"dependencies": packages})
    assert found[0] == code
    assert all(part in found[1] for part in said.split(".*")[0].split("\n"))
