"""Making transformers know converted models without importing it first.

``import fas`` must be enough for ``from_pretrained`` to rebuild a converted model, and must not cost the
seconds that importing transformers and torch takes: the command line shows its help in a fraction of one.
So the registration runs when transformers' table of quantisers is imported, by whomever.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_TABLE = "transformers.quantizers"
_OURS = "fas.runtime.transformers_"


def register_with_transformers() -> None:
    """Register our quantiser now if transformers' table is there, else when it will be."""
    if _TABLE in sys.modules:
        importlib.import_module(_OURS)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds one module as usual and lets our registration follow its import."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _TABLE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Executes the module as its own loader does, then imports our side."""

    def __init__(self, inner: Loader) -> None:
        self.inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        importlib.import_module(_OURS)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
