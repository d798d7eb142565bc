"""The program ``fas``: finds the commands in its own package and hands over to one of them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Annotated

import typer

from fas import __version__, registry
from fas.cli.program.failures import failures_as_messages
from fas.cli.program.session import RememberingGroup, Session

# Tracebacks stay Python's own: `--debug` asks for them, and what nobody foresaw deserves the whole story.
app = typer.Typer(
    cls=RememberingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
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
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what the library logs.")] = False,
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


for _name in registry.available("cli"):
    if _name != "main":
        # Command modules import only what their help needs; torch comes with the first call.
        _command = getattr(importlib.import_module(f"fas.cli.{_name}"), _name)
        app.command(_name, cls=getattr(_command, "command_class", None))(failures_as_messages(_command))
