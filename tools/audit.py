"""Ask what is known against the packages of an environment (pip-audit), and list them as an SBOM (CycloneDX, JSON).

Whoever runs this has pip-audit and cyclonedx-bom; the packages looked at are those of another interpreter.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def verdict(report: dict[str, Any]) -> tuple[int, str]:
    """Return an exit code and what it means: 1 where something is known, 2 where not every package could be asked for.

    pip-audit itself says "no known vulnerabilities" of packages that its index does not know, or without an index.
    """
    # The library itself is in no index before it is released.
    packages = [package for package in report["dependencies"] if package["name"] != "fas"]
    found = [
        f"{package['name']} {package['version']}: {flaw['id']} (mended in {', '.join(flaw['fix_versions']) or 'none'})"
        for package in packages
        for flaw in package.get("vulns", ())
    ]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    lines = [*found, f"{len(packages) - len(skipped)} of {len(packages)} packages audited, {len(found)} findings"]
    if skipped:
        lines.append(f"not audited, the index does not know them or cannot be reached: {', '.join(skipped)}")
    return 1 if found else 2 if skipped or not packages else 0, "\n".join(lines)


def main() -> int:
    """Write the SBOM and print the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("interpreter", help="of the environment to look at")
    parser.add_argument("--sbom", type=Path, default=Path("build/sbom.json"), help="the list to write")
    arguments = parser.parse_args()
    tools = Path(sys.executable).parent
    arguments.sbom.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [tools / "cyclonedx-py", "environment", "--output-reproducible", "--pyproject", "pyproject.toml", "--mc-type",
         "library", "-o", arguments.sbom, arguments.interpreter],
        check=True,
    )  # fmt: skip
    listed = subprocess.run(
        [arguments.interpreter, "-c", "import sys; print(*sys.path, sep='\\n')"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    places = [part for place in listed if any(Path(place).glob("*.dist-info")) for part in ("--path", place)]
    done = subprocess.run(
        [tools / "pip-audit", *places, "--progress-spinner", "off", "--format", "json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if not done.stdout:
        print(f"pip-audit could not ask its index:\n{done.stderr.strip()[-2000:]}")
        return 2
    code, said = verdict(json.loads(done.stdout))
    print(f"{arguments.sbom} lists the packages\n{said}")
    return code


if __name__ == "__main__":
    sys.exit(main())
