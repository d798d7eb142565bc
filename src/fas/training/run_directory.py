"""Directories of training runs: what made their checkpoints, and where a run goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from fas.errors import CheckpointError
from fas.storage.checksums import check_sums
from fas.storage.directory import whole_file
from fas.surgery.replace import neuron_parameters

logger = logging.getLogger(__name__)

# What a run directory says about the run whose checkpoints it holds.
RUN_FILE = "finetune.json"
# What reading a checkpoint raises that has been cut or has a flipped bit.
_DAMAGE = (
    CheckpointError,
    SafetensorError,
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
)
# Rows that stand for a data set in its fingerprint.
_SAMPLE = 10_000


def fingerprint_data(dataset: Any) -> str:
    """Return a digest of a data set: its length and up to 10,000 rows, evenly spread.

    A data set whose rows change by chance names itself by an attribute ``fingerprint``.
    """
    named = getattr(dataset, "fingerprint", None) or getattr(dataset, "_fingerprint", None)
    if isinstance(named, str):
        return named
    digest = hashlib.sha256(str(len(dataset)).encode())
    for index in range(0, len(dataset), max(1, -(-len(dataset) // _SAMPLE))):
        for key, value in sorted(dataset[index].items()):
            # Tensors and arrays by their bytes: long ones print shortened.
            content = torch.as_tensor(value).tolist() if hasattr(value, "__array__") else value
            digest.update(f"{key}{content!r}".encode())
    return digest.hexdigest()[:16]


def fingerprint_weights(model: nn.Module) -> str:
    """Return a digest of the weights that dense and converted model share: both ends of every tensor.

    Thresholds are left out: calibration on another number of threads may differ in their last bit.
    """
    digest, own = hashlib.sha256(), neuron_parameters(model)
    for name, parameter in sorted(model.named_parameters()):
        if name not in own:
            flat = parameter.detach().reshape(-1)
            ends = torch.cat([flat[:8], flat[-8:]]).float().cpu()
            digest.update(f"{name}{tuple(parameter.shape)}".encode() + ends.numpy().tobytes())
    return digest.hexdigest()[:16]


def begin(directory: Path, description: Mapping[str, Any], *, resume: bool) -> Path | None:
    """Return the checkpoint from which a run goes on, None for a run that starts.

    Args:
        directory: of the run.
        description: what the result depends on.
        resume: go on where checkpoints are; else they are removed.

    Raises:
        CheckpointError: checkpoints of another run; the field that differs is named.
    """
    file = directory / RUN_FILE
    known: dict[str, Any] | None = None
    if file.is_file():
        try:
            # Runs of before these fields were there.
            known = {
                "processes": 1,
                "sharded": False,
                "distillation": 0.0,
                **json.loads(file.read_text(encoding="utf-8")),
            }
        except ValueError:
            raise CheckpointError(f"{file} is damaged; remove {directory} or name another output_dir") from None
    present = sorted(directory.glob("checkpoint-*"), key=step_of)
    if present and known is None:
        raise CheckpointError(
            f"{directory} holds {present[-1].name} but no {RUN_FILE}: another program wrote it; name another output_dir"
        )
    if not resume:
        for path in present:
            shutil.rmtree(path)
    latest = next((path for path in reversed(present) if resume and _is_whole(path)), None)
    if latest is not None and known is not None:
        for field, value in description.items():
            if known.get(field) != value:
                raise CheckpointError(
                    f"{directory} holds checkpoints of another run: {field} was {known.get(field)!r} and is "
                    f"now {value!r}; start from the same, name another output_dir, or pass resume=False, "
                    "which removes them"
                )
    save_run(directory, description)
    return latest


def save_run(directory: Path, description: Mapping[str, Any]) -> None:
    """Write the run file, whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    with whole_file(directory / RUN_FILE) as beside:
        beside.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


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
