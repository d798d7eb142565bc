"""Writing a converted model with its tokenizer, as one directory."""

from __future__ import annotations

from pathlib import Path

from fas.cli._models import Loaded


def save(loaded: Loaded, directory: Path) -> None:
    """Write model and tokenizer; the directory appears whole or not at all."""
    from fas.runtime.transformers_ import whole_directory

    with whole_directory(directory) as beside:
        loaded.model.save_pretrained(beside)
        if loaded.tokenizer is not None:
            loaded.tokenizer.save_pretrained(beside)
