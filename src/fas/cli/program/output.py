"""What a command shows: results on stdout, as text or JSON; progress and remarks on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import typer

from fas import __version__
from fas.cli.program.session import Session, is_first
from fas.cli.program.terminal import printable
from fas.errors import DataError
from fas.types import Measurement, finite

# Columns of a table that is not shown on a terminal: wide enough for one line per row.
_FILE_WIDTH = 180


class Output:
    """Where a command puts what it finds; made by ``opened``.

    Attributes:
        json: rows of measurements are the only thing on stdout.
        measurements: what has been measured so far.
    """

    def __init__(self, session: Session, *, as_json: bool, stream: IO[str]) -> None:
        self.json = as_json
        self.measurements: list[Measurement] = []
        self._session = session
        self._stream = stream

    @classmethod
    @contextmanager
    def opened(cls, context: typer.Context, as_json: bool) -> Iterator[Output]:
        """Open the output of one command; with JSON the rows are written when all has gone well."""
        stream = sys.stdout if is_first() else open(os.devnull, "w", encoding="utf-8")
        output = cls(context.obj, as_json=as_json, stream=stream)
        # Whatever another library prints must not stand between the rows.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            yield output
        if as_json:
            rows = [finite(row.to_dict()) for row in output.measurements]
            print(json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False), file=output._stream)
        # A full disk behind stdout is an error of this command, not of the interpreter's end.
        output._stream.flush()

    def measure(self, quantity: str, value: float, unit: str, **conditions: Any) -> Measurement:
        """Take note of one figure, with the command and the versions that made it."""
        row = Measurement(quantity, float(value), unit, conditions={**conditions, **self.conditions()})
        self.measurements.append(row)
        return row

    def conditions(self) -> dict[str, Any]:
        """Return the command and the versions that make all figures of this run."""
        versions = {"fas": __version__, **{name: version(name) for name in ("torch", "transformers")}}
        return {"command": self._session.command, "versions": versions}

    def text(self, line: str) -> None:
        """Show a line, unless JSON was asked for."""
        if not self.json:
            print(printable(line), file=self._stream)

    def remark(self, line: str) -> None:
        """Tell on stderr what is going on."""
        if not self._session.quiet:
            print(printable(line), file=sys.stderr)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table, unless JSON was asked for; columns of numbers stand to the right."""
        if self.json:
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        # As Text: square brackets in the name of a model or layer are no markup.
        table = Table(title=Text(printable(title), "table.title"), title_justify="left", header_style="bold")
        for i, name in enumerate(columns):
            numeric = all(isinstance(row[i], int | float) or row[i] is None for row in rows)
            table.add_column(Text(printable(name)), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(number(cell))) for cell in row))
        terminal = self._stream.isatty()
        Console(file=self._stream, width=None if terminal else _FILE_WIDTH).print(table)

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Show a bar on a terminal while the block runs; the block tells parts done and parts in all."""
        if self.json or self._session.quiet or not sys.stderr.isatty():
            yield lambda done, total: None
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(what, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)


def read_rows(path: Path) -> list[Measurement]:
    """Read the rows that a command has printed with ``--json``.

    Raises:
        DataError: something else.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise TypeError("no list")
        found = [Measurement(**row) for row in rows]
        if not all(isinstance(row.conditions, dict) for row in found):
            raise TypeError("conditions are no table")
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path} holds no rows of a fas command ({error}): write them with --json > {path}") from None
    return found


def number(value: Any) -> str:
    """Return a cell's text: four significant digits for reals, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}" if 10 <= abs(value) < 1e6 else f"{value:.4g}"
    return str(value)
