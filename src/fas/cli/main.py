"""The program ``fas``: finds the commands in its own package and hands over to one of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from fas import __version__, registry
from fas.cli.program.failures import failures_as_messages
from fas.cli.program.session import RememberingGroup, Session

_MARKUP: Literal["markdown"] = "markdown"


class Commands(RememberingGroup):
    """The files of this folder as commands; the options of one are worked out when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands."""
        return [name for name in registry.available("cli") if name != "main"]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; None of an unknown name."""
        return _command(cmd_name) if cmd_name in self.list_commands(ctx) else None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the help of the program, which needs no options of commands."""
        short = {name: TyperCommand(name, help=_function(name).__doc__) for name in self.list_commands(ctx)}
        self.get_command = lambda _, name: short[name]  # type: ignore[method-assign, assignment]
        super().format_help(ctx, formatter)
        del self.get_command


def _function(name: str) -> Callable[..., None]:
    # Command modules import only what their help needs; torch comes with the first call.
    found: Callable[..., None] = getattr(importlib.import_module(f"fas.cli.{name}"), name)
    return found


def _command(name: str) -> Any:
    one, function = typer.Typer(add_completion=False, rich_markup_mode=_MARKUP), _function(name)
    one.command(name, cls=getattr(function, "command_class", None))(failures_as_messages(function))
    return typer.main.get_command(one)


# Tracebacks stay Python's own: `--debug` asks for them, and what nobody foresaw deserves the whole story.
app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=_MARKUP,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"fas {__version__}")
        raise typer.Exit


@app.callback()
def fas(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks in place of one-line errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the library's log.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks on stderr.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the release.")
    ] = False,
) -> None:
    """Pretrained transformers as spiking neural networks: convert, calibrate, measure, generate."""
    context.obj = Session.begin(context, debug=debug, verbose=verbose, quiet=quiet)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code.

    0: done; 1: an error, told in one line; 2: the command was not understood; 130: interrupted.

    Args:
        arguments: those of the process if None.
    """
    app(args=None if arguments is None else list(arguments), prog_name="fas")
