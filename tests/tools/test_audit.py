"""What the audit of dependencies says: nothing known is not the same as nothing asked."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "tools" / "audit.py"
CLEAN = {"name": "a", "version": "1", "vulns": []}
FLAWED = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found on PyPI"}


def loaded():
    spec = importlib.util.spec_from_file_location("audit", SOURCE)
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    return audit


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
    found = loaded().verdict({"dependencies": packages})
    assert found[0] == code
    assert all(part in found[1] for part in said.split(".*")[0].split("\n"))


def test_the_list_of_packages_is_written_and_the_verdict_returned(tmp_path, monkeypatch, capsys):
    tools, sbom = tmp_path / "bin", tmp_path / "new" / "sbom.json"
    tools.mkdir()
    answers = {"cyclonedx-py": "", "pip-audit": json.dumps({"dependencies": [CLEAN, FLAWED]})}
    for name, answer in answers.items():
        # Says what it was called with where it is told to write (-o FILE INTERPRETER), and prints its answer.
        script = [
            "import sys", "words = sys.argv[1:]",
            "'-o' in words and open(words[words.index('-o') + 1], 'w').write(' '.join(words))", f"print({answer!r})",
        ]  # fmt: skip
        (tools / name).write_text("\n".join([f"#!{sys.executable}", *script]))
        (tools / name).chmod(0o755)
    interpreter = sys.executable
    monkeypatch.setattr(sys, "executable", str(tools / "python"))
    monkeypatch.setattr(sys, "argv", ["audit", interpreter, "--sbom", str(sbom)])
    assert loaded().main() == 1
    assert sbom.read_text().startswith("environment ") and sbom.read_text().endswith(interpreter)
    assert f"{sbom} lists the packages\nb 2: PYSEC-1" in capsys.readouterr().out
