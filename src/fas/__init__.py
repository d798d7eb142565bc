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
    from fas.config import FASConfig as FASConfig
    from fas.conversion import calibrate as calibrate
    from fas.conversion import convert as convert
    from fas.conversion import revert as revert
    from fas.energy.count import count_operations as count_operations
    from fas.energy.estimate import estimate_energy as estimate_energy
    from fas.loading import Loaded as Loaded
    from fas.loading import load as load
    from fas.methods.fas import FAS as FAS
    from fas.methods.las import LAS as LAS
    from fas.recording import record as record
    from fas.reporting.page import write_report as write_report
    from fas.runtime.anytime import Anytime as Anytime
    from fas.runtime.plain import load_module as load_module
    from fas.stages.finetune import Finetune as Finetune
    from fas.storage.card import write_card as write_card
    from fas.streaming import stream as stream
    from fas.training.finetuning import finetune as finetune
    from fas.types import Measurement as Measurement

_HOMES = {
    "Anytime": "fas.runtime.anytime",
    "FAS": "fas.methods.fas",
    "FASConfig": "fas.config",
    "Finetune": "fas.stages.finetune",
    "LAS": "fas.methods.las",
    "Loaded": "fas.loading",
    "Measurement": "fas.types",
    "calibrate": "fas.conversion",
    "convert": "fas.conversion",
    "count_operations": "fas.energy.count",
    "estimate_energy": "fas.energy.estimate",
    "finetune": "fas.training.finetuning",
    "load": "fas.loading",
    "load_module": "fas.runtime.plain",
    "record": "fas.recording",
    "revert": "fas.conversion",
    "stream": "fas.streaming",
    "write_card": "fas.storage.card",
    "write_report": "fas.reporting.page",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fas' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__


register_with_transformers()
