"""Writing a converted model with its tokenizer, as one directory."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fas.distributed import place
from fas.errors import FASError
from fas.loading import Loaded, directory_method
from fas.words import size

# In the place of what is unfinished: a model that is to replace the one it was made of, and who has written it.
_WRITTEN, _COMMAND = "model", "command"
# What commands keep beside a directory until it is written.
_UNFINISHED = (".calibrating", ".partial", "-checkpoints")


def check_place(directory: Path, *, overwrite: bool) -> None:
    """Refuse, before the work begins, a place whose files saving a converted model would replace.

    Args:
        directory: the place.
        overwrite: whether a converted model may be replaced; an interrupted run of the command may finish its own.

    Raises:
        FASError: a file, a dense model, a directory with other things in it, or a converted model.
        OSError: a place where nothing can be written.
    """
    check_writable(directory)
    if directory.exists() and not directory.is_dir():
        raise FASError(f"{directory} is a file: name a directory to save to")
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    if not (directory / "config.json").is_file():
        raise FASError(f"{directory} holds other files: name a new directory, or a converted model to replace")
    if directory_method(directory) != "fas":
        raise FASError(f"{directory} holds a dense model, which would be lost: name another directory")
    name = directory.absolute().name
    begun = any(directory.absolute().with_name(f"{name}{end}").exists() for end in _UNFINISHED)
    if not (overwrite or begun):
        raise FASError(f"{directory} holds a converted model: add --overwrite to replace it, or name another directory")


def check_writable(path: Path) -> None:
    """Refuse, before the work begins, a file or directory that could not be written.

    Raises:
        OSError: the nearest place that exists is not a directory, or takes nothing.
    """
    nearest = _nearest(path.absolute())
    # What lies at the place itself is replaced by something beside it.
    folder = nearest.parent if nearest == path.absolute() and not nearest.is_dir() else nearest
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None


def check_room(directory: Path, model: Any, copies: int = 1) -> None:
    """Refuse, before the work begins, a disk that the weights of a model would not fit on so many times.

    Raises:
        FASError: less space than they take.
    """
    needed = copies * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    free = shutil.disk_usage(_nearest(directory.absolute())).free
    if needed > free:
        raise FASError(
            f"{directory} takes {size(needed)} and more, and its disk has {size(free)} free: free some, or name "
            "another directory"
        )


def _nearest(path: Path) -> Path:
    return next(found for found in (path, *path.parents) if found.exists())


def unfinished(directory: Path) -> Path:
    """Return where calibration keeps what is done until ``save`` has written the directory."""
    return directory.absolute().with_name(f"{directory.absolute().name}.calibrating")


def save(loaded: Loaded, directory: Path) -> None:
    """Write model and processor or tokenizer, from the first of several processes.

    A new directory appears whole or not at all.
    """
    if place()[0] != 0:
        return
    _write(loaded, directory)
    shutil.rmtree(unfinished(directory), ignore_errors=True)


def is_in_place(directory: Path, model: str) -> bool:
    """Return whether a model would replace the one that it is made of."""
    return directory.is_dir() and Path(model).is_dir() and directory.samefile(model)


def save_in_place(loaded: Loaded, directory: Path, command: str) -> None:
    """Write a model over the one that it was made of, so that ``finish`` can end this if it is killed."""
    from fas.storage.directory import write_text

    if place()[0] != 0:
        return
    work = unfinished(directory)
    _write(loaded, work / _WRITTEN)
    write_text(work / _COMMAND, command)
    finish(directory, command)


def finish(directory: Path, command: str) -> bool:
    """Move to its place what ``save_in_place`` has written; return whether the same command had written it.

    From the moment that the command is noted the new model is whole beside the directory, whose files may be of both.
    """
    from fas.storage.directory import put

    work = unfinished(directory)
    noted, written = work / _COMMAND, work / _WRITTEN
    if not noted.is_file():
        return False
    if written.is_dir():
        put(written, directory.resolve())
        # What is half removed must not be moved again.
        written.rename(work / "placed")
    same = noted.read_text(encoding="utf-8") == command
    for path in work.iterdir():
        if path != noted:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(work)
    return same


def _write(loaded: Loaded, directory: Path) -> None:
    from fas.storage.directory import whole_directory

    with whole_directory(directory) as beside:
        loaded.model.save_pretrained(beside)
        if loaded.processor is not None:
            loaded.processor.save_pretrained(beside)
        elif loaded.tokenizer is not None:
            loaded.tokenizer.save_pretrained(beside)
