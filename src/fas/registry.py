"""The tree is the registry: the file name is the key, and the name on the command line."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterable
from typing import Any


def available(kind: str, package: str = "fas") -> list[str]:
    """Return the names that ``load(kind, name)`` accepts: the modules of one sub-package, sorted.

    Only file names are read, nothing is imported but ``package`` itself. Modules with a leading
    underscore and sub-packages are left out.

    Args:
        kind: sub-package that holds one plug-in per file, such as ``neurons`` or ``methods``.
        package: importable package that holds the kinds.

    Raises:
        ValueError: ``package`` has no sub-package of that name.

    Example:
        >>> "soft_reset_if" in available("neurons")
        True
    """
    return _public_modules(_search_path(kind, package))


def load(kind: str, name: str, package: str = "fas") -> type[Any]:
    """Return the one public class that the module ``<package>.<kind>.<name>`` defines.

    Args:
        kind: sub-package that holds one plug-in per file, such as ``neurons`` or ``methods``.
        name: file name without ``.py``; a dash stands for an underscore.
        package: importable package that holds the kinds.

    Raises:
        ValueError: unknown kind or name; the message lists the known ones.
        TypeError: the module defines no public class, or more than one.

    Example:
        >>> load("neurons", "soft-reset-if").__module__
        'fas.neurons.soft_reset_if'
    """
    known = available(kind, package)
    key = name.replace("-", "_")
    if key not in known:
        raise ValueError(f"no {name!r} in {package}.{kind}; available: {', '.join(known) or 'none'}")
    module = importlib.import_module(f"{package}.{kind}.{key}")
    # A class imported from elsewhere is a dependency of the plug-in, not the plug-in.
    classes = [
        member
        for member_name, member in inspect.getmembers(module, inspect.isclass)
        if member.__module__ == module.__name__ and not member_name.startswith("_")
    ]
    if len(classes) != 1:
        found = ", ".join(cls.__name__ for cls in classes) or "none"
        raise TypeError(
            f"{module.__name__} must define exactly one public class, found: {found}; "
            "move the others to files of their own or start their names with an underscore"
        )
    return classes[0]


def _search_path(kind: str, package: str) -> Iterable[str]:
    spec = importlib.util.find_spec(f"{package}.{kind}") if kind.isidentifier() else None
    if spec is None or spec.submodule_search_locations is None:
        root = importlib.import_module(package)
        kinds = sorted(module.name for module in pkgutil.iter_modules(root.__path__) if module.ispkg)
        raise ValueError(f"no kind {kind!r} in {package}; available: {', '.join(kinds) or 'none'}")
    return spec.submodule_search_locations


def _public_modules(path: Iterable[str]) -> list[str]:
    return sorted(
        module.name for module in pkgutil.iter_modules(path) if not module.ispkg and not module.name.startswith("_")
    )
