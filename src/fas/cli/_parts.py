"""Parts of a long measurement, and batches within them, that an earlier run of the same command has finished."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fas.cli.program.output import Output
from fas.types import Measurement

if TYPE_CHECKING:
    from fas.recording import Recording
    from fas.storage.resume import Once

Rows = list[list[Any]]
# Where a recording counts the spikes of batches that an earlier run has done: they are kept for all sites together.
_EARLIER = "batches of an earlier run"


class Parts:
    """Keeps the rows of every part, and what every batch gave, so that a command that was killed resumes.

    They lie in the user's cache (``$XDG_CACHE_HOME/fas``, ``~/.cache/fas`` if that is not set) until the command is
    done. Another run finds them if command line, directory, versions, and size and time of every file that the command
    line names are the same. Without a place to write nothing is kept.

    Args:
        output: of the command.
        sources: what the command reads; paths that do not exist are names on the hub.
    """

    def __init__(self, output: Output, *sources: Any) -> None:
        from fas.storage.digest import digest, states
        from fas.storage.resume import Run

        self.output, self._unwritable = output, False
        stated = output.conditions()
        paths = [Path(str(source)) for source in sources if source]
        files = {str(path): states(sorted(path.iterdir()) if path.is_dir() else [path]) for path in paths}
        name = digest([json.dumps([stated["command"], os.getcwd()]).encode()])[:24]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fas"
        self._run = Run(cache / f"{name}.jsonl", {**stated, "directory": os.getcwd(), "files": files})

    def run(self, name: str, measure: Callable[[], Rows]) -> Rows:
        """Return the rows of a part for the table, with what it has measured in the output."""
        if name in self._run.entries:
            done = self._run.entries[name]
            self.output.measurements += [Measurement(**row) for row in done["measured"]]
            found: Rows = done["rows"]
            return found
        before = len(self.output.measurements)
        rows = measure()
        self._keep(name, {"measured": [row.to_dict() for row in self.output.measurements[before:]], "rows": rows})
        return rows

    def within(self, part: str, recording: Callable[[], Recording | None]) -> Once:
        """Return what keeps the batches of a part as they are done.

        Args:
            part: its name.
            recording: returns what counts the spikes, None where nothing spikes; it is told of those of earlier runs.
        """

        def once(key: str, work: Callable[[], Any]) -> Any:
            import torch

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
        """Forget the parts: the command has shown all it found."""
        self._run.remove()

    def _keep(self, key: str, value: Any) -> None:
        """Write to the journal; without a place to write, a killed run starts anew, which is said once."""
        if self._unwritable:
            return
        try:
            self._run.add(key, value)
        except OSError as error:
            self._unwritable = True
            self.output.remark(f"{self._run.file} cannot be written ({error.strerror}): a killed run would start anew")


def _sent(recording: Recording | None) -> tuple[int, int]:
    """Return the spikes and windows of all sites so far."""
    sites = [] if recording is None else list(recording.sites.values())
    return sum(site.spikes for site in sites), sum(site.windows for site in sites)
