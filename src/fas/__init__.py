"""fas: pretrained transformers as spiking neural networks.

Importing the package is cheap: names load their modules on first use, and transformers learns about
converted models as soon as it is itself imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fas._register import register_with_transformers
from fas._version import __version__

if TYPE_CHECKING:
    from fas.comparison import Plan as Plan
    from fas.comparison import compare as compare
    from fas.config import FASConfig as FASConfig
    from fas.conversion import calibrate as calibrate
    from fas.conversion import convert as convert
    from fas.conversion import revert as revert
    from fas.energy.count import count_operations as count_operations
    from fas.energy.estimate import estimate_energy as estimate_energy
    from fas.evaluation.evaluate import evaluate as evaluate
    from fas.exporting.export import export as export
    from fas.loading import Loaded as Loaded
    from fas.loading import load as load
    from fas.methods.fas import FAS as FAS
    from fas.methods.fas_paper import FASPaper as FASPaper
    from fas.methods.fast_snn import FastSNN as FastSNN
    from fas.methods.las import LAS as LAS
    from fas.methods.qcfs_only import QCFSOnly as QCFSOnly
    from fas.methods.rate_norm import RateNorm as RateNorm
    from fas.methods.threshold_balancing import ThresholdBalancing as ThresholdBalancing
    from fas.neurons.clipped_count import ClippedCount as ClippedCount
    from fas.neurons.outlier_aware import OutlierAware as OutlierAware
    from fas.neurons.phase import Phase as Phase
    from fas.neurons.signed_digit import SignedDigit as SignedDigit
    from fas.neurons.signed_if import SignedIF as SignedIF
    from fas.neurons.soft_reset_if import SoftResetIF as SoftResetIF
    from fas.neurons.ternary_phase import TernaryPhase as TernaryPhase
    from fas.recording import record as record
    from fas.reporting.look import report as report
    from fas.runtime.anytime import Anytime as Anytime
    from fas.runtime.plain import load_module as load_module
    from fas.stages.finetune import Finetune as Finetune
    from fas.storage.card import write_card as write_card
    from fas.streaming import stream as stream
    from fas.training.finetuning import finetune as finetune
    from fas.types import Measurement as Measurement

_HOMES = {
    "Anytime": "fas.runtime.anytime",
    "ClippedCount": "fas.neurons.clipped_count",
    "FAS": "fas.methods.fas",
    "FASPaper": "fas.methods.fas_paper",
    "FASConfig": "fas.config",
    "FastSNN": "fas.methods.fast_snn",
    "Finetune": "fas.stages.finetune",
    "LAS": "fas.methods.las",
    "Loaded": "fas.loading",
    "Measurement": "fas.types",
    "OutlierAware": "fas.neurons.outlier_aware",
    "Phase": "fas.neurons.phase",
    "Plan": "fas.comparison",
    "QCFSOnly": "fas.methods.qcfs_only",
    "RateNorm": "fas.methods.rate_norm",
    "SignedDigit": "fas.neurons.signed_digit",
    "SignedIF": "fas.neurons.signed_if",
    "SoftResetIF": "fas.neurons.soft_reset_if",
    "TernaryPhase": "fas.neurons.ternary_phase",
    "ThresholdBalancing": "fas.methods.threshold_balancing",
    "calibrate": "fas.conversion",
    "compare": "fas.comparison",
    "convert": "fas.conversion",
    "count_operations": "fas.energy.count",
    "estimate_energy": "fas.energy.estimate",
    "evaluate": "fas.evaluation.evaluate",
    "export": "fas.exporting.export",
    "finetune": "fas.training.finetuning",
    "load": "fas.loading",
    "load_module": "fas.runtime.plain",
    "record": "fas.recording",
    "report": "fas.reporting.look",
    "revert": "fas.conversion",
    "stream": "fas.streaming",
    "write_card": "fas.storage.card",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fas' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__


register_with_transformers()
