"""The fields of the method that a command line names, as options of the command."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from fas import registry
from fas.settings import Settings

_METHOD, _GIVEN = "fas.method", "fas.options"


def method_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the fields of its method as options; it gets those that were set as ``options``.

    An option left out is absent from ``options``, so that the method's own default holds.

    Args:
        command: has keyword parameters ``context`` and ``options``, and ``method`` unless it is for ``fas`` alone.
    """
    signature = inspect.signature(command, eval_str=True)
    own = {name: parameter for name, parameter in signature.parameters.items() if name != "options"}

    @functools.wraps(command)
    def with_options(**arguments: Any) -> None:
        command(**arguments, options=arguments["context"].meta[_GIVEN])

    described: Any = with_options
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own.values()]
    described.__signature__ = signature.replace(parameters=keywords)
    described.__annotations__ = {name: parameter.annotation for name, parameter in own.items()}
    described.command_class = MethodCommand
    del described.__wrapped__
    return with_options


class MethodCommand(TyperCommand):
    """A command whose further options are the fields of the method that ``--method`` names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Find the method, refuse options that only others have, then parse."""
        ctx.meta[_METHOD] = method = _named(args)
        mine = {flag for parameter in self.get_params(ctx) for flag in (*parameter.opts, *parameter.secondary_opts)}
        for flag in (arg.partition("=")[0] for arg in args if arg.startswith("--")):
            owners = [] if flag in mine else [name for name in registry.available("methods") if flag in _flags(name)]
            if owners:
                raise typer.BadParameter(f"{flag} is an option of method {', '.join(owners)}, which {method} lacks")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; typer hands on only the parameters of its function, so options of the method go beside."""
        own = {parameter.name for parameter in super().get_params(ctx)}
        given = {name: ctx.params.pop(name) for name in [*ctx.params] if name not in own}
        ctx.meta[_GIVEN] = {name: value for name, value in given.items() if value not in (None, ())}
        return super().invoke(ctx)

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the command's own parameters, then those of the method that ``ctx`` is for."""
        own = super().get_params(ctx)
        taken = {parameter.name for parameter in own}
        # An option that the command has itself (a seed for everything) is not asked for twice.
        return [*own, *(option for option in _options(ctx.meta.get(_METHOD, "fas")) if option.name not in taken)]


def _named(args: Sequence[str]) -> str:
    for i, arg in enumerate(args):
        if arg == "--method" and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith("--method="):
            return arg.partition("=")[2]
    return "fas"


@functools.cache
def _options(method: str) -> tuple[Any, ...]:
    """Return the options of a method; none of one that is not there, which the command itself refuses."""
    try:
        cls = registry.load("methods", method)
    except ValueError:
        return ()
    help_of, hints = _attributes(cls), get_type_hints(cls)

    def holder(**arguments: Any) -> None:
        """Hold the options."""

    parameters = []
    for field in fields(cls):
        kind = _type(field.name, hints[field.name])
        dashed = field.name.replace("_", "-")
        flags = f"--{dashed}/--no-{dashed}" if kind is bool else f"--{dashed}"
        text, panel = help_of.get(field.name, "") + _shown(field.default), f"Method {method}"
        option = typer.Option(flags, help=text, show_default=False, rich_help_panel=panel)
        kinds: Any = Annotated[kind | None, option]
        parameters.append(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kinds))
    described: Any = holder
    described.__signature__ = inspect.Signature(parameters)
    described.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False)
    app.command()(holder)
    return tuple(typer.main.get_command(app).params)


def _flags(method: str) -> set[str]:
    return {flag for option in _options(method) for flag in (*option.opts, *option.secondary_opts)}


def _type(name: str, kind: Any) -> Any:
    """Return the type of an option: a tuple is given by repeating it, a neuron by its name and fields."""
    if name == "neuron":
        return str
    if get_origin(kind) is tuple:
        return list[get_args(kind)[0]]  # type: ignore[misc]
    alternatives = [part for part in get_args(kind) if part is not type(None)]
    return alternatives[0] if type(None) in get_args(kind) else kind


def _shown(default: Any) -> str:
    shown = ("off", "on")[default] if isinstance(default, bool) else default
    return "" if shown in (None, ()) else f" Default: {shown}."


def _attributes(cls: type[Any]) -> dict[str, str]:
    """Return what docstrings say under ``Attributes:``, one line each: a class's own word before its bases'."""
    found: dict[str, str] = {}
    for owner in (*cls.__mro__, Settings):
        _, _, section = (inspect.cleandoc(owner.__doc__ or "")).partition("Attributes:\n")
        section = re.split(r"^\S", section, maxsplit=1, flags=re.MULTILINE)[0]
        entries = re.split(r"^ {4}(\w+): ", section, flags=re.MULTILINE)
        for name, text in zip(entries[1::2], entries[2::2], strict=True):
            found.setdefault(name, " ".join(text.replace("``", "`").split()))
    return found
