"""What holds for one run of the program, whichever command it is."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperGroup

# Control characters but tab and line feed, those of the second block, marks that turn the direction of writing, and
# halves of characters that no encoding has.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Commands that share their work where torchrun or accelerate starts several processes.
_SHARED = ("calibrate", "convert", "finetune")
# Commands that say what they will take and a line about every block as it is calibrated, and who of the library does.
_TELLING, _TELLERS = ("calibrate", "convert"), ("fas.calibration.figures", "fas.calibration.needs")


def printable(text: str) -> str:
    """Return a text with control characters written out as Python writes them."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def is_first() -> bool:
    """Return whether this process writes and speaks: the first of several does."""
    return os.environ.get("RANK", "0") == "0"


def is_alone() -> bool:
    """Return whether this is the only process of the command."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


@dataclass(frozen=True)
class Session:
    """Global options of this run.

    Attributes:
        debug: show tracebacks.
        verbose: show what the library logs.
        quiet: neither progress nor remarks.
        command: the command line, as one would type it again.
    """

    debug: bool
    verbose: bool
    quiet: bool
    command: str

    @classmethod
    def begin(cls, context: typer.Context, *, debug: bool, verbose: bool, quiet: bool) -> Session:
        """Start a run of ``fas``, whose arguments the group has kept.

        Raises:
            typer.BadParameter: one of several processes of a command that does not share its work.
        """
        name = str(context.invoked_subcommand)
        if not is_alone() and name not in _SHARED:
            raise typer.BadParameter(f"fas {name} runs in one process, {', '.join(_SHARED)} in several: start it alone")
        session = cls.of(shlex.join(["fas", *context.meta[_ARGUMENTS]]), debug=debug, verbose=verbose, quiet=quiet)
        talks = name in _TELLING and not session.quiet
        for teller in _TELLERS:
            logging.getLogger(teller).setLevel(logging.INFO if talks else logging.NOTSET)
        return session

    @classmethod
    def of(cls, command: str, *, debug: bool, verbose: bool, quiet: bool) -> Session:
        """Start a run of a program: send the library's log to stderr and keep other libraries from chatting."""
        quiet = quiet or not is_first()
        _log_to_stderr(logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING)
        # Read once, when transformers and its hub client are imported.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info" if verbose else "error")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        return cls(debug, verbose, quiet, command)


_ARGUMENTS = "fas.arguments"


class RememberingGroup(TyperGroup):
    """Keeps the arguments as they were given: every figure states the command that made it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the arguments, then parse them."""
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)


class _Stderr(logging.StreamHandler):
    """Writes to whatever stderr is at the moment of the message."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        pass


def _log_to_stderr(level: int) -> None:
    logger = logging.getLogger("fas")
    logger.setLevel(level)
    if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
        handler = _Stderr()
        handler.setFormatter(_Lines("%(levelname)s: %(message)s"))
        logger.addHandler(handler)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return printable(f"{level}{record.getMessage()}")
