"""What ``import fas`` promises: a name that goes, or that hides behind a sub-package, breaks somebody's code."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import fas

VERBS = {
    "calibrate", "compare", "convert", "count_operations", "estimate_conversion", "estimate_energy", "evaluate",
    "export", "finetune", "load", "load_module", "record", "report", "revert", "stream", "summarise", "write_card",
}  # fmt: skip
METHODS = {"FAS", "FASPaper", "FastSNN", "LAS", "QCFSOnly", "RateNorm", "ThresholdBalancing"}
NEURONS = {
    "AdaptiveDigit",
    "ClippedCount",
    "OutlierAware",
    "Phase",
    "SignedDigit",
    "SignedIF",
    "SoftResetIF",
    "TernaryPhase",
}
OTHERS = {"Anytime", "FASConfig", "Finetune", "Loaded", "Measurement", "Plan", "__version__"}


def test_the_public_names():
    assert set(fas.__all__) == VERBS | METHODS | NEURONS | OTHERS


@pytest.mark.parametrize("name", sorted(VERBS))
def test_a_verb_has_an_example(name):
    assert "Example:" in (inspect.getdoc(getattr(fas, name)) or "")


def test_sub_packages_do_not_take_the_place_of_verbs():
    program = "import fas, pkgutil; print({m.name for m in pkgutil.iter_modules(fas.__path__)} & set(fas.__all__))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
