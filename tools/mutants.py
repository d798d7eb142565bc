"""Change the library one spot at a time (cosmic-ray) and see whether its tests notice; goes on where it was stopped.

What is kept lies in build/mutants: a copy of the tree, in which the changes are made, and what became of each. A run
tries ``--limit`` mutants more, in the order of a hash, prints those that survive, and the share of all so far that was
killed.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.testing import run_tests
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "build" / "mutants"
# Folders or files of src/fas, and the tests that must notice; those named after a file run first.
AREAS = {
    "neurons": "tests/neurons tests/contracts/test_neurons.py",
    "kernels/naive.py": "tests/contracts/test_kernels.py tests/kernels",
    "kernels/torch_.py": "tests/contracts/test_kernels.py tests/kernels tests/layers/test_population.py",
    "stages": "tests/stages tests/methods tests/contracts/test_stages.py",
    "energy": "tests/energy",
    "evaluation": "tests/evaluation tests/cli/test_evaluate.py tests/cli/test_compare.py tests/data/test_for_model.py",
}
# `|` stands in annotations; bits and shifts of tensors and floats are errors that any test would notice.
LEFT_OUT = re.compile(
    r"core/(ReplaceBinaryOperator_BitOr.*|ReplaceBinaryOperator_.*_(Bit\w+|[LR]Shift)|RemoveDecorator|ExceptionReplacer)"
)


def copy_tree(tree: Path) -> None:
    """Copy what git tracks, as it stands in the working tree."""
    shutil.rmtree(tree, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)


def mutants(tree: Path) -> list[tuple[str, str, MutationSpec]]:
    """Return key, area and mutation of every mutant, in the order of a hash."""
    found = []
    for area in AREAS:
        source = tree / "src" / "fas" / area
        files = sorted(source.glob("*.py")) if source.is_dir() else [source]
        with use_db(str(PLACE / "all.sqlite")) as session:
            init([file for file in files if file.stem != "__init__"], session, {})
            mutations = [mutation for item in session.work_items for mutation in item.mutations]
        for mutation in mutations:
            text = Path(mutation.module_path).read_text(encoding="utf-8").splitlines()[mutation.start_pos[0] - 1]
            # The star of a signature is no product, the size of a cache no result.
            signature = text[mutation.start_pos[1] :][:2] == "*,"
            if not (LEFT_OUT.fullmatch(mutation.operator_name) or signature or text.lstrip().startswith("@")):
                about = [str(Path(mutation.module_path).relative_to(tree)), mutation.operator_name, mutation.occurrence]
                found.append((json.dumps([*about, text.strip()]), area, mutation))
    return sorted(found, key=lambda entry: hashlib.sha256(entry[0].encode()).hexdigest())


def command(tree: Path, area: str, file: Path) -> str:
    """Return the tests of a mutant as a command."""
    same = sorted(str(path.relative_to(tree)) for path in (tree / "tests").rglob(f"test_{file.stem.strip('_')}.py"))
    options = '-x -q -p no:cacheprovider -m "not slow"'
    return f"{sys.executable} -m pytest {options} {' '.join(same)} {AREAS[area]}"


def main() -> None:
    """Try mutants that were not tried before."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=300, help="mutants to try now")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for the tests of one")
    parser.add_argument("--area", choices=sorted(AREAS), help="one alone")
    arguments = parser.parse_args()
    tree, journal = PLACE / "tree", PLACE / "found.json"
    copy_tree(tree)
    known = json.loads(journal.read_text(encoding="utf-8")) if journal.is_file() else {}
    os.environ |= {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    os.chdir(tree)
    everything = [entry for entry in mutants(tree) if arguments.area in (None, entry[1])]
    chosen = [entry for entry in everything if entry[0] not in known][: arguments.limit]
    for area in sorted({area for _, area, _ in chosen}):
        outcome, told = run_tests(command(tree, area, Path("none.py")), arguments.timeout)
        if outcome != TestOutcome.SURVIVED:
            raise SystemExit(f"the tests of {area} fail without any change:\n{told[-2000:]}")
    for key, area, mutation in chosen:
        result = mutate_and_test([mutation], command(tree, area, Path(mutation.module_path)), arguments.timeout)
        known[key] = result.test_outcome != TestOutcome.SURVIVED
        journal.write_text(json.dumps(known, indent=1), encoding="utf-8")
        print(f"{'killed' if known[key] else 'SURVIVED'}: {key}", flush=True)
        if not known[key]:
            print(result.diff, flush=True)
    tried = [known[key] for key, *_ in everything if key in known]
    share = sum(tried) / max(1, len(tried))
    print(f"{sum(tried)} of {len(tried)} mutants killed, {share:.1%}; there are {len(everything)}")


if __name__ == "__main__":
    main()
