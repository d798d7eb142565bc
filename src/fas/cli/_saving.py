"""Writing a converted model with its tokenizer, as one directory."""

from __future__ import annotations

from pathlib import Path

from fas.cli._models import Loaded, directory_method
from fas.errors import FASError


def check_place(directory: Path) -> None:
    """Refuse, before the work begins, a place whose files saving a converted model would replace.

    Raises:
        FASError: a file, a dense model, or a directory with other things in it.
    """
    if directory.exists() and not directory.is_dir():
        raise FASError(f"{directory} is a file: name a directory to save to")
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    if not (directory / "config.json").is_file():
        raise FASError(f"{directory} holds other files: name a new directory, or a converted model to replace")
    if directory_method(directory) != "fas":
        raise FASError(f"{directory} holds a dense model, which would be lost: name another directory")


def save(loaded: Loaded, directory: Path) -> None:
    """Write model and processor or tokenizer; a new directory appears whole or not at all."""
    from fas.runtime.directory import whole_directory

    with whole_directory(directory) as beside:
        loaded.model.save_pretrained(beside)
        if loaded.processor is not None:
            loaded.processor.save_pretrained(beside)
        elif loaded.tokenizer is not None:
            loaded.tokenizer.save_pretrained(beside)
