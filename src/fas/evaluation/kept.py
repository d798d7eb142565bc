"""Figures of long work, and batches within it, that an earlier run of the same command has measured."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fas.recording import Recording
from fas.storage.digest import digest, states
from fas.storage.resume import Once, Run
from fas.types import Measurement

logger = logging.getLogger(__name__)

# Where a recording counts the spikes of batches that an earlier run has done: they are kept for all sites together.
_EARLIER = "batches of an earlier run"


class Kept:
    """Keeps the figures of every part, and what every batch gave, so that work that was killed resumes after them.

    They lie in a journal in the user's cache (``$XDG_CACHE_HOME/fas``, ``~/.cache/fas`` if that is not set), which
    goes when the work is done. Another run finds them if what it says about itself, the working directory, and size
    and time of every file among its sources are the same. Without a place to write nothing is kept.

    Args:
        about: what tells this work from other work, JSON types: ``command``, versions.
        sources: what is read; paths that do not exist are names on the hub.

    Attributes:
        file: of the journal.
    """

    def __init__(self, about: Mapping[str, Any], *sources: Any) -> None:
        self._unwritable = False
        paths = [Path(str(source)) for source in sources if source]
        files = {str(path): states(sorted(path.iterdir()) if path.is_dir() else [path]) for path in paths}
        name = digest([json.dumps([about.get("command"), os.getcwd()]).encode()])[:24]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fas"
        self.file = cache / f"{name}.jsonl"
        self._run = Run(self.file, {**about, "directory": os.getcwd(), "files": files})

    @property
    def parts(self) -> int:
        """How many parts are done."""
        return sum(isinstance(value, dict) for value in self._run.entries.values())

    @property
    def batches(self) -> int:
        """How many batches are done, those of finished parts included."""
        return len(self._run.entries) - self.parts

    @property
    def sites(self) -> str:
        """Words about sites of a part under way, where some are done."""
        return ", and the sites calibrated since," if [*self.file.parent.glob(f"{self.file.stem}-*")] else ""

    def part(self, name: str, measure: Callable[[], Sequence[Measurement]]) -> list[Measurement]:
        """Return the figures of a part: those that an earlier run has measured, or what measuring gives now."""
        if name in self._run.entries:
            return [Measurement(**row) for row in self._run.entries[name]["measured"]]
        rows = list(measure())
        self._keep(name, {"measured": [row.to_dict() for row in rows]})
        shutil.rmtree(self._folder(name), ignore_errors=True)
        return rows

    def folder(self, part: str) -> Path | None:
        """Return where the calibration of a part keeps its sites until the part is done; None keeps nothing."""
        return None if self._unwritable else self._folder(part)

    def within(self, part: str, recording: Callable[[], Recording | None]) -> Once:
        """Return what keeps the batches of a part as they are done.

        Args:
            part: its name.
            recording: returns what counts the spikes, None where nothing spikes; those of earlier runs are added.
        """

        def once(key: str, work: Callable[[], Any]) -> Any:
            key, counted = f"{part}: {key}", recording()
            if key in self._run.entries:
                value, spikes, windows = self._run.entries[key]
                if counted is not None:
                    counted.tally(_EARLIER, torch.tensor([spikes]), windows, 0)
                return value
            before = _sent(counted)
            value = work()
            self._keep(key, [value, *(after - earlier for after, earlier in zip(_sent(counted), before, strict=True))])
            return value

        return once

    def close(self) -> None:
        """Remove the journal: all that was found has been handed over."""
        self._run.remove()
        for folder in self.file.parent.glob(f"{self.file.stem}-*"):
            shutil.rmtree(folder)

    def _folder(self, part: str) -> Path:
        return self.file.with_name(f"{self.file.stem}-{digest([part.encode()])[:12]}")

    def _keep(self, key: str, value: Any) -> None:
        """Write to the journal; say once where it cannot be written."""
        if self._unwritable:
            return
        try:
            self._run.add(key, value)
        except OSError as error:
            self._unwritable = True
            logger.warning(
                "%s cannot be written (%s): a killed run would start from the beginning", self.file, error.strerror
            )


def _sent(recording: Recording | None) -> tuple[int, int]:
    """Return the spikes and windows of all sites so far."""
    sites = [] if recording is None else list(recording.sites.values())
    return sum(site.spikes for site in sites), sum(site.windows for site in sites)
