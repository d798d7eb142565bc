"""The fields of the methods as options of a command, read from their source: importing them takes torch."""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

import fas.types
from fas import registry


@dataclass(frozen=True)
class _Field:
    """One field of a method: its name, type, default as text, and line of documentation."""

    name: str
    type: Any
    default: str
    help: str


def method_options(command: Callable[..., None], kind: str = "methods") -> Callable[..., None]:
    """Give a command the fields of every method as options; it gets those that were set as ``options``.

    An option left out is absent from ``options``, so that the method's own default holds.

    Args:
        command: has a keyword parameter ``options``.
        kind: sub-package whose classes' fields become options.
    """
    settings: dict[str, _Field] = {}
    for name in registry.available(kind):
        for field in _fields(kind, name):
            first = settings.setdefault(field.name, field)
            if field.default != first.default:
                # One option serves all: the first file's text, and every other default with its owner.
                settings[field.name] = replace(first, default=f"{first.default}; {name}: {field.default}")
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "options"]
    # An option that the command has itself (a seed for everything) is not asked for twice.
    settings = {name: field for name, field in settings.items() if name not in signature.parameters}
    extra = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(field))
        for field in settings.values()
    ]

    @functools.wraps(command)
    def with_options(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in settings}
        command(**arguments, options={name: value for name, value in given.items() if value is not None})

    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    described: Any = with_options
    described.__signature__ = signature.replace(parameters=[*keywords, *extra])
    described.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *extra)}
    del described.__wrapped__
    return with_options


def _option(field: _Field) -> Any:
    option = typer.Option(_declaration(field), help=field.help, show_default=field.default, rich_help_panel="Method")
    return Annotated[field.type | None, option]


def _declaration(field: _Field) -> str:
    dashed = field.name.replace("_", "-")
    return f"--{dashed}/--no-{dashed}" if field.type is bool else f"--{dashed}"


def _fields(kind: str, name: str) -> Iterator[_Field]:
    spec = importlib.util.find_spec(f"fas.{kind}.{name}")
    assert spec is not None and spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    for owner in classes:
        help_of = _attributes(ast.get_docstring(owner) or "")
        for line in owner.body:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
                field = line.target.id
                default = ast.literal_eval(line.value)
                yield _Field(
                    field,
                    _type(field, ast.unparse(line.annotation)),
                    _shown(default),
                    help_of.get(field, ""),
                )


def _type(name: str, annotation: str) -> Any:
    """Return the type of an option: a tuple is given by repeating it, a plug-in by one of their names."""
    if annotation == "str" and f"{name}s" in _kinds():
        return Literal[tuple(registry.available(f"{name}s"))]
    holder = type("Holder", (), {"__annotations__": {name: annotation}})
    found = get_type_hints(holder, globalns=vars(fas.types))[name]
    if get_origin(found) is tuple:
        return list[get_args(found)[0]]  # type: ignore[misc]
    alternatives = [part for part in get_args(found) if part is not type(None)]
    return alternatives[0] if type(None) in get_args(found) else found


def _kinds() -> list[str]:
    return [path.name for path in Path(fas.types.__file__).parent.iterdir() if (path / "__init__.py").is_file()]


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return "none" if default in (None, ()) else str(default)


def _attributes(docstring: str) -> dict[str, str]:
    """Return the descriptions under ``Attributes:`` of a docstring, one line each."""
    _, _, section = docstring.partition("Attributes:\n")
    section = re.split(r"^\S", section, maxsplit=1, flags=re.MULTILINE)[0]
    entries = re.split(r"^ {4}(\w+): ", section, flags=re.MULTILINE)
    texts = dict(zip(entries[1::2], entries[2::2], strict=True))
    return {name: " ".join(text.replace("``", "`").split()) for name, text in texts.items()}
