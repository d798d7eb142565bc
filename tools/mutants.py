"""Change the library one spot at a time (cosmic-ray) and see whether its tests notice; goes on where it was stopped.

What is kept lies in build/mutants: a copy of the tree, in which the changes are made, and what became of each. A run
tries ``--limit`` mutants more, of every area as many, in the order of a hash; ``--survivors`` tries those again that no
test has noticed. It prints those that survive, and the share of all so far that was killed. A mutant that no test can
notice is marked in build/mutants/found.json by hand: ``"equivalent: why"``.

The tests of an area run once without any change, which shows what reaches which function; a mutant then needs the
tests of its function alone, in a fork of this process, which has imported what takes seconds.
"""

import argparse
import ast
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch  # noqa: F401
import transformers  # noqa: F401
from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import MutationSpec

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "build" / "mutants"
TREE = PLACE / "tree"
# Folders or files of src/fas, and the tests that must notice; those named after a file run first.
AREAS = {
    "neurons": "tests/neurons tests/contracts/test_neurons.py",
    "kernels/naive.py": "tests/contracts/test_kernels.py tests/kernels",
    "kernels/torch_.py": "tests/contracts/test_kernels.py tests/kernels tests/layers/test_population.py",
    "stages": "tests/stages tests/methods tests/contracts/test_stages.py",
    "energy": "tests/energy",
    "evaluation": "tests/evaluation tests/cli/test_evaluate.py tests/cli/test_evaluate_tasks.py "
    "tests/cli/test_compare.py tests/cli/test_pictures.py tests/data/test_for_model.py",
}
# `|` stands in annotations; bits and shifts of tensors and floats are errors that any test would notice.
LEFT_OUT = re.compile(
    r"core/(ReplaceBinaryOperator_BitOr.*|ReplaceBinaryOperator_.*_(Bit\w+|[LR]Shift)|RemoveDecorator|ExceptionReplacer)"
)
OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-W", "ignore::pytest.PytestAssertRewriteWarning"]


def copy_tree() -> str:
    """Copy what git tracks, as it stands in the working tree, and return a digest of it."""
    shutil.rmtree(TREE, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = hashlib.sha256()
    for name in filter(None, listed.split("\0")):
        (TREE / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, TREE / name)
        found.update(f"{name} {hashlib.sha256((ROOT / name).read_bytes()).hexdigest()}".encode())
    return found.hexdigest()


def mutants(areas: list[str]) -> list[list]:
    """Return key, area and mutation of every mutant: one of each area in turn, within it in the order of a hash."""
    found = []
    for area in areas:
        source = TREE / "src" / "fas" / area
        files = sorted(source.glob("*.py")) if source.is_dir() else [source]
        with use_db(str(PLACE / "all.sqlite")) as session:
            init([file for file in files if file.stem != "__init__"], session, {})
            mutations = [mutation for item in session.work_items for mutation in item.mutations]
        here = []
        for mutation in mutations:
            text = Path(mutation.module_path).read_text(encoding="utf-8").splitlines()[mutation.start_pos[0] - 1]
            # The star of a signature is no product, the size of a cache no result.
            signature = text[mutation.start_pos[1] :][:2] == "*,"
            if not (LEFT_OUT.fullmatch(mutation.operator_name) or signature or text.lstrip().startswith("@")):
                about = [str(Path(mutation.module_path).relative_to(TREE)), mutation.operator_name, mutation.occurrence]
                here.append((json.dumps([*about, text.strip()]), area, mutation))
        here.sort(key=lambda entry: hashlib.sha256(entry[0].encode()).hexdigest())
        found += [(rank, *entry) for rank, entry in enumerate(here)]
    return [entry for _, *entry in sorted(found, key=lambda entry: entry[0])]


class Watch:
    """A plug-in of pytest that notes which tests reach which function, and the seconds that each takes."""

    def __init__(self) -> None:
        self.reached: dict[str, set[str]] = defaultdict(set)
        self.seconds: dict[str, float] = {}
        self._now: list[str] = []
        self._shared: dict[str, set[str]] = defaultdict(set)  # by file of tests: what their fixtures reach

    def trace(self, frame, event, argument):
        """Note a call (``sys.settrace``)."""
        if "/src/fas/" in frame.f_code.co_filename:
            place = f"{frame.f_code.co_filename}:{frame.f_code.co_firstlineno}"
            (self.reached if self._now[1] == "call" else self._shared)[place].add(self._now[0])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item):
        """Watch the fixtures."""
        return (yield from self._watched(item, "setup"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        """Watch a test."""
        return (yield from self._watched(item, "call"))

    def _watched(self, item, phase):
        self._now, began = [item.nodeid, phase], time.process_time()
        sys.settrace(self.trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.seconds[item.nodeid] = self.seconds.get(item.nodeid, 0) + time.process_time() - began

    def found(self) -> dict:
        """Return the tests of each function in the order of the run; fixtures count for all tests of their file."""
        for place, tests in self._shared.items():
            files = {test.partition("::")[0] for test in tests}
            self.reached[place] |= {test for test in self.seconds if test.partition("::")[0] in files}
        reached = {place: [test for test in self.seconds if test in tests] for place, tests in self.reached.items()}
        return {"reached": reached, "seconds": self.seconds}


def tested(tests: list[str], limit: float | None, watch: Path | None = None) -> tuple[bool, str]:
    """Run tests in a fork, within ``limit`` seconds of the processor; return whether they passed, and their output."""
    told = PLACE / "output.txt"
    child = os.fork()
    if not child:
        os.setsid()
        with told.open("wb") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 5))
        os.environ |= {"PYTHONPATH": str(TREE / "src"), "OMP_NUM_THREADS": "1"}
        os.chdir(TREE)
        sys.path[:] = [str(TREE / "src"), *(path for path in sys.path if path not in ("", str(ROOT / "src")))]
        watching = Watch()
        code = pytest.main([*OPTIONS, *tests], plugins=[watching] if watch else [])
        if watch:
            watch.write_text(json.dumps(watching.found()), encoding="utf-8")
        os._exit(int(code))
    until, status = time.monotonic() + 3600, 0
    while not (done := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < until:
        time.sleep(0.05)
    status = done[1]
    try:
        os.killpg(child, signal.SIGKILL)  # what a test has left behind
    except ProcessLookupError:
        pass
    if not done[0]:
        os.waitpid(child, 0)
    return bool(done[0]) and status == 0, told.read_text(encoding="utf-8", errors="replace")


def tests_of(area: str, file: Path) -> list[str]:
    """Return the files of tests of an area, those named after a file first."""
    same = [str(path.relative_to(TREE)) for path in sorted((TREE / "tests").rglob(f"test_{file.stem.strip('_')}.py"))]
    return list(dict.fromkeys([*same, *AREAS[area].split()]))


def place_of(file: Path, line: int) -> str | None:
    """Return the innermost function in whose body a line stands, as ``Watch`` names it; None outside of all."""
    best = None
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.body[0].lineno <= line <= node.end_lineno:
            if best is None or node.lineno > best.lineno:
                best = node
    if best is None:
        return None
    return f"{file}:{min([best.lineno, *(one.lineno for one in best.decorator_list)])}"


def watched(area: str, digest: str) -> dict:
    """Return which tests reach what; an area whose tests fail without any change ends the program."""
    place = PLACE / f"watched-{area.replace('/', '-')}.json"
    if place.is_file() and (kept := json.loads(place.read_text(encoding="utf-8"))).get("tree") == digest:
        return kept
    passed, told = tested(AREAS[area].split(), None, place)
    if not passed:
        raise SystemExit(f"the tests of {area} fail without any change:\n{told[-2000:]}")
    found = {**json.loads(place.read_text(encoding="utf-8")), "tree": digest}
    place.write_text(json.dumps(found), encoding="utf-8")
    return found


def survives(area: str, mutation: MutationSpec, known: dict) -> tuple[bool, str]:
    """Return whether the tests of a mutant pass, and the line that it changed."""
    file = Path(mutation.module_path)
    before, times = file.read_text(encoding="utf-8"), file.stat()
    operator = get_operator(mutation.operator_name)(**mutation.operator_args)
    after = mutate_code(before, operator, mutation.occurrence)
    place, seconds = place_of(file, mutation.start_pos[0]), known["seconds"]
    tests = tests_of(area, file) if place is None else known["reached"].get(place, [])
    if place is not None:
        first = tests_of(area, file)
        tests = sorted(tests, key=lambda test: (test.partition("::")[0] not in first[:1], seconds[test]))
    limit = 60 + 4 * (sum(seconds.values()) if place is None else sum(seconds[test] for test in tests))
    lines = [f"- {a}\n+ {b}" for a, b in zip(before.splitlines(), after.splitlines(), strict=False) if a != b][:1]
    if not tests:
        return True, f"{lines[0]}\n  (no test reaches it)"
    file.write_text(after, encoding="utf-8")
    # Compiled files are told apart by the second of their source.
    os.utime(file, (times.st_atime, times.st_mtime + 2 + 2 * mutation.occurrence))
    try:
        return tested(tests, limit)[0], lines[0]
    finally:
        file.write_text(before, encoding="utf-8")
        os.utime(file, (times.st_atime, times.st_mtime))


def main() -> None:
    """Try mutants that were not tried before."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=300, help="mutants to try now")
    parser.add_argument("--area", choices=sorted(AREAS), help="one alone")
    parser.add_argument("--survivors", action="store_true", help="try those again that survived")
    arguments = parser.parse_args()
    journal = PLACE / "found.json"
    digest = copy_tree()
    known = json.loads(journal.read_text(encoding="utf-8")) if journal.is_file() else {}
    areas = list(AREAS) if arguments.area is None else [arguments.area]
    everything = mutants(areas)
    wanted = "survived" if arguments.survivors else None
    chosen = [entry for entry in everything if known.get(entry[0]) == wanted][: arguments.limit]
    for area in dict.fromkeys(area for _, area, _ in chosen):
        reached = watched(area, digest)
        for key, _, mutation in [entry for entry in chosen if entry[1] == area]:
            survived, line = survives(area, mutation, reached)
            known[key] = "survived" if survived else "killed"
            journal.write_text(json.dumps(known, indent=1), encoding="utf-8")
            print(f"{known[key]}: {key}" + (f"\n{line}" if survived else ""), flush=True)
    print("| package | mutants | tried | killed | equivalent | share killed of the others |")
    print("|---|---|---|---|---|---|")
    for name in [*areas, "all"]:
        here = [key for key, area, _ in everything if name in ("all", area)]
        came = Counter(known[key].partition(":")[0] for key in here if key in known)
        tried, same = sum(came.values()), came["equivalent"]
        share = came["killed"] / max(1, tried - same)
        print(f"| {name} | {len(here)} | {tried} | {came['killed']} | {same} | {share:.1%} |")


if __name__ == "__main__":
    main()
