"""Processor time from the command line to the first answer, beside what the libraries alone take to load.

    python -m benchmarks.start [MODEL]

Each line runs in processes of its own, one after another in every round; the least of all rounds is shown, since other
work on the machine can only add. MODEL is a converted directory, ``embedded`` if not given (then converted without
calibration).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

_CONVERT = "import sys; from fas.cli.main import main; main(['convert', 'embedded', sys.argv[1], '--no-calibrate'])"
_PROGRAM = "from fas.cli.main import main; main()"


def lines(model: str) -> dict[str, list[str]]:
    """Return what is run, by name."""
    return {
        "fas --help": ["-c", _PROGRAM, "--help"],
        "fas inspect": ["-c", _PROGRAM, "inspect", model],
        "import torch, transformers and its GPT-2": ["-c", "import torch; from transformers import GPT2LMHeadModel"],
        "import fas": ["-c", "import fas"],
        "python": ["-c", ""],
    }


def processor_time(arguments: list[str]) -> float:
    """Return the seconds of processor time that Python takes with some arguments, user and system together."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", help="a converted directory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/start.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or f"{folder}/snn"
        if arguments.model is None:
            processor_time(["-c", _CONVERT, model])
        found = [{name: processor_time(line) for name, line in lines(model).items()} for _ in range(arguments.rounds)]
    least = {name: min(row[name] for row in found) for name in found[0]}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"unit": "s of processor time", "rounds": found, "least": least}, indent=1))
    for name, seconds in least.items():
        print(f"{name:42} {seconds:.2f} s")


if __name__ == "__main__":
    main()
