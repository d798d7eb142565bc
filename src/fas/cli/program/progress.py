"""How far long work is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fas.cli.program.session import printable
from fas.types import Progress
from fas.words import span

# Seconds between two lines of a log.
_EVERY = 30.0


@contextmanager
def bar(title: str) -> Iterator[Progress]:
    """Show a bar on the terminal while the block runs."""
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=None)
        before = 0, 0

        def show(what: str, done: int, total: int) -> None:
            nonlocal before
            if _begins(done, total, *before):
                bars.reset(task, total=total)
            before = done, total
            bars.update(task, description=printable(what) or title, completed=done, total=total)

        yield show


class Log:
    """Writes what is being done, its rate and the time left, once in a while; ``title`` in front of every line."""

    def __init__(self, title: str) -> None:
        self._title, self._start, self._before = title, 0, (0, 0)
        self._began = self._shown = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Record parts done and in all; write a line if the last one is old."""
        now = time.monotonic()
        if _begins(done, total, *self._before):
            self._began, self._start = now, done
        self._before = done, total
        if now - self._shown < _EVERY:
            return
        self._shown = now
        line = f"{self._title}: {what}: {done} of {total}"
        made = done - self._start
        if made > 0:
            each = (now - self._began) / made
            line += f", {each:.2g} s each, about {span(each * (total - done))} left"
        print(printable(line), file=sys.stderr, flush=True)


def _begins(done: int, total: int, before: int, total_before: int) -> bool:
    """Whether other parts are being counted than before: these have a rate of their own."""
    return total != total_before or done < before
