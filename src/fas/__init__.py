"""fas: pretrained transformers as spiking neural networks.

Importing the package is cheap: names load their modules on first use, transformers learns of converted models.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from fas._register import register_with_transformers
from fas._version import __version__

# The stub that type checkers read says where every public name lives.
_STUB = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_HOMES = {name: home for home, name in re.findall(r"^from (fas\.[a-z]\S*) import (\w+) as", _STUB, re.MULTILINE)}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fas' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__


register_with_transformers()
