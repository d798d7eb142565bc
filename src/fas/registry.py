"""The tree is the registry: the file name is the key, and the name on the command line.

A class that stands elsewhere is named ``module:class``, as it can be imported again.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def available(kind: str, package: str = "fas") -> list[str]:
    """Return the names that ``load(kind, name)`` accepts: the modules of one sub-package, sorted.

    Only file names are read; nothing but ``package`` is imported. A leading underscore hides a module.

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
        name: file name without ``.py``; a dash stands for an underscore. ``module:class`` names a class elsewhere.
        package: importable package that holds the kinds.

    Raises:
        ValueError: unknown kind or name; the message lists the known ones. A class elsewhere that cannot be imported.
        TypeError: the module defines no public class, or more than one.

    Example:
        >>> load("neurons", "soft-reset-if").__module__
        'fas.neurons.soft_reset_if'
    """
    known = available(kind, package)
    if ":" in name:
        return _imported(name)
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


def name_of(kind: str, cls: type[Any], package: str = "fas") -> str:
    """Return the name by which ``load`` finds a class again: its file's, or ``module:class`` of one elsewhere.

    Example:
        >>> name_of("neurons", load("neurons", "phase"))
        'phase'
    """
    folder, _, name = cls.__module__.rpartition(".")
    if folder == f"{package}.{kind}" and name in available(kind, package) and load(kind, name, package) is cls:
        return name
    return f"{cls.__module__}:{cls.__qualname__}"


def _imported(name: str) -> type[Any]:
    """Return the class that ``module:class`` names."""
    module_name, _, path = name.partition(":")
    remedy = "define the class before the model is loaded, in a module that can be imported"
    if "<locals>" in path:
        raise ValueError(f"{name} was defined inside a function, where nothing else can find it: {remedy}")
    if not all(part.isidentifier() for part in (*module_name.split("."), *path.split("."))):
        raise ValueError(f"{name!r} does not name a class; expected module:class")
    if module_name not in sys.modules:
        _check_foreign(module_name, name)
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name} cannot be imported ({error}): {remedy}") from None
    if not inspect.isclass(found):
        raise ValueError(f"{name} is not a class")
    return found


def _check_foreign(module_name: str, name: str) -> None:
    """Refuse to run code that came with a model: a module in a directory with a config.json."""
    spec = importlib.util.find_spec(module_name.partition(".")[0])
    places = [] if spec is None else [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else ())]
    if any((parent / "config.json").is_file() for place in places for parent in list(Path(place).parents)[:2]):
        raise ValueError(f"{name} lies in a model's directory, whose code is not run: import {module_name} yourself")


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
