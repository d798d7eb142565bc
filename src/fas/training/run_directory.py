"""Directories of training runs: what made their checkpoints, and where a run resumes."""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fas.errors import CheckpointError
from fas.storage.checksums import check_sums
from fas.storage.resume import Run

logger = logging.getLogger(__name__)

# What a run directory says about the run whose checkpoints it holds.
RUN_FILE = "finetune.json"
# What reading a checkpoint raises that has been cut or has a flipped bit.
_DAMAGE = (
    CheckpointError, SafetensorError, zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, RuntimeError
)  # fmt: skip


def begin(directory: Path, description: Mapping[str, Any], *, resume: bool) -> Path | None:
    """Return the checkpoint from which a run resumes, None for a run that starts.

    Without ``resume`` the checkpoints that are there are removed.

    Raises:
        CheckpointError: checkpoints of another run; the field that differs is named.
    """
    file = directory / RUN_FILE
    present = sorted(directory.glob("checkpoint-*"), key=step_of)
    if present and not file.is_file():
        raise CheckpointError(
            f"{directory} holds {present[-1].name} but no {RUN_FILE}: another program wrote it; name another output_dir"
        )
    if not resume:
        for path in present:
            shutil.rmtree(path)
        file.unlink(missing_ok=True)
    latest = next((path for path in reversed(present) if resume and _is_whole(path)), None)
    Run(file, description, refuse=resume and bool(present)).begin()
    return latest


def state_of(checkpoint: Path) -> dict[str, Any] | None:
    """Return Trainer's state in a checkpoint; None for one not written to the end (the state comes last)."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        int(state["global_step"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        logger.warning("%s was not written to the end; it is passed over", checkpoint)
        return None
    return state


def _is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint was written to the end and reads as it was written."""
    if state_of(checkpoint) is None:
        return False
    try:
        # Sharded optimisers have folders of their own.
        for kind in ("scheduler.pt", "optimizer*"):
            if next(checkpoint.glob(kind), None) is None:
                raise CheckpointError(f"{kind.strip('*')} is missing")
        check_sums(checkpoint)
        for file in checkpoint.glob("*.safetensors"):
            with safe_open(file, "pt"):
                pass
        # torch.save writes archives, with a checksum of each part.
        for file in (*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")):
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is not None:
                    raise CheckpointError(f"{file} has changed since it was written")
    except _DAMAGE as error:
        logger.warning("%s is damaged (%s); it is passed over", checkpoint, error)
        return False
    return True


def step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint is named after."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1
