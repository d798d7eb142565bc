"""Errors as one line for people, with an exit code for scripts."""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import typer

from fas.cli.program.session import Session, printable
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
        except KeyboardInterrupt as interrupt:
            resumed = "interrupted: run again to resume from where it was"
            _say(str(interrupt) or (_INTERRUPTED if _starts_over(arguments) else resumed))
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # Whoever read our output (head, less) has seen enough.
            sys.stdout = None
            raise typer.Exit(0) from None
        except RuntimeError as error:
            # What torch.save raises where the disk is full; any other one is a fault of this program.
            if session.debug or not _is_full(error):
                raise
            _fail(error, arguments)
        except _documented() as error:
            if session.debug:
                raise
            _fail(error, arguments)

    return guarded


def _fail(error: BaseException, arguments: dict[str, Any]) -> NoReturn:
    place = next((arguments[name] for name in ("out", "plot", "page") if arguments.get(name) is not None), None)
    again = "" if _starts_over(arguments) or not _is_full(error) else "; run the command again to resume"
    _say(f"error: {message(error, place)}{again}")
    try:
        # What stdout still holds cannot be written either, where that is what failed.
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        sys.stdout = None
    raise typer.Exit(1) from None


def _starts_over(arguments: dict[str, Any]) -> bool:
    """Whether an interrupted command has left nothing to resume from: no checkpoint of training, no calibrated site."""
    out = arguments.get("out")
    endings = ("partial", "calibrating")
    began = isinstance(out, Path) and any(Path(f"{out.absolute()}.{ending}").exists() for ending in endings)
    return not (began or arguments["context"].info_name == "finetune")


def message(error: BaseException, place: Path | None = None) -> str:
    """Return one line that says what went wrong; ``place`` is where the command writes."""
    if _is_full(error):
        where = getattr(error, "filename", None) or place
        limited = getattr(error, "errno", None) == errno.EFBIG or "File too large" in str(error)
        what = "a file would exceed the limit of the system (ulimit -f)" if limited else "no space left on the disk"
        return (
            f"{what}{f' for {where}' if where else ''}: free some and run again, or name another directory; what was "
            "there before is as it was"
        )
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}{_REMEDIES.get(error.errno or 0, '')}"
    return " ".join(str(error).split()) or type(error).__name__


_REMEDIES = {
    errno.EROFS: ", nothing was written: name a place that can be written to",
    errno.EACCES: ": take the rights to it, or name another place",
    errno.EPERM: ": take the rights to it, or name another place",
    errno.EEXIST: ", and is not a directory: name another place",
    errno.ENOTDIR: ", but a file where a directory should be: name another place",
}


def _is_full(error: BaseException) -> bool:
    """Whether a disk, or the user's share of it, is full: writers that are not Python say so as text."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    text = str(error)
    torchs = "inline_container" in text and "unexpected pos" in text
    return torchs or "No space left on device" in text or "File too large" in text


def _documented() -> tuple[type[Exception], ...]:
    """Return what commands raise on purpose; safetensors' own error is not an OSError, even for a full disk."""
    safetensors = sys.modules.get("safetensors")
    weights = () if safetensors is None else (safetensors.SafetensorError,)
    return (FASError, ValueError, OSError, *weights)


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr)
