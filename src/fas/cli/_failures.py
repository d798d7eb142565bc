"""Errors as one line for people, with an exit code for scripts."""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from fas.cli._session import Session
from fas.errors import FASError

_INTERRUPTED = "interrupted, nothing was written"


def failures_as_messages(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command end with one line on stderr and exit code 1 where it raises what it documents.

    Other exceptions are faults of this program and keep their traceback; ``--debug`` shows it for all.
    """

    @functools.wraps(command)
    def guarded(**arguments: Any) -> None:
        session: Session = arguments["context"].obj
        try:
            command(**arguments)
        except KeyboardInterrupt:
            _say(_INTERRUPTED if _starts_anew(arguments) else "interrupted: run again to go on from where it was")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # Whoever read our output (head, less) has seen enough.
            sys.stdout = None
            raise typer.Exit(0) from None
        except _documented() as error:
            if session.debug:
                raise
            _say(f"error: {message(error)}")
            raise typer.Exit(1) from None

    return guarded


def _starts_anew(arguments: dict[str, Any]) -> bool:
    """Whether an interrupted command has left nothing to go on from: no checkpoint of training, no finished block."""
    out = arguments.get("out")
    began = isinstance(out, Path) and out.with_name(f"{out.name}.partial").exists()
    return not (began or arguments["context"].info_name == "finetune")


def message(error: BaseException) -> str:
    """Return one line that says what went wrong."""
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    # The writer of weights is not Python and reports the system's error as text.
    if full or "No space left on device" in str(error):
        where = getattr(error, "filename", None)
        return f"no space left on the disk{f' for {where}' if where else ''}: free some, or name another directory"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _documented() -> tuple[type[Exception], ...]:
    """Return what commands raise on purpose; safetensors' own error is no OSError even for a full disk."""
    safetensors = sys.modules.get("safetensors")
    weights = () if safetensors is None else (safetensors.SafetensorError,)
    return (FASError, ValueError, OSError, *weights)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
