"""What a command shows: results on stdout, as text or JSON; progress and remarks on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import typer

from fas.cli.program.progress import Log, bar
from fas.cli.program.session import Session, is_first, printable
from fas.errors import DataError
from fas.types import Measurement, Origin, Progress, finite

if TYPE_CHECKING:
    from fas.evaluation.kept import Kept

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
        self._kept: Kept | None = None

    @classmethod
    @contextmanager
    def opened(cls, context: typer.Context, as_json: bool) -> Iterator[Output]:
        """Open the output of one command; with JSON the rows are written when all has gone well."""
        stream = sys.stdout if is_first() else open(os.devnull, "w", encoding="utf-8")
        output = cls(context.obj, as_json=as_json, stream=stream)
        # Whatever another library prints must not stand between the rows.
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            try:
                yield output
            except KeyboardInterrupt:
                raise KeyboardInterrupt(output._resumable()) from None
        if as_json:
            print(rows_as_json(output.measurements), file=output._stream)
        # A full disk behind stdout is an error of this command, not of the interpreter's end.
        output._stream.flush()
        if output._kept is not None:
            output._kept.close()

    def measure(
        self, quantity: str, value: float, unit: str, *, origin: Origin = "measured", **conditions: Any
    ) -> None:
        """Record one figure, with the command and the versions that made it."""
        self.add(Measurement(quantity, float(value), unit, origin, conditions))

    def add(self, *rows: Measurement) -> None:
        """Record figures, with the command and the versions that made them."""
        self.measurements += [replace(row, conditions={**row.conditions, **self.conditions()}) for row in rows]

    def keep(self, *sources: Any) -> Kept:
        """Return what keeps the figures of this command, until they are shown, for a run that is killed."""
        from fas.evaluation.kept import Kept

        self._kept = Kept(self.conditions(), *sources)
        return self._kept

    def _resumable(self) -> str:
        kept = self._kept
        if kept is None or not (kept.parts or kept.batches):
            return ""
        done = f"{kept.parts} parts and {kept.batches} batches{kept.sites}"
        return f"interrupted: {done} are kept in {kept.file}; run the same command again to resume"

    def conditions(self) -> dict[str, Any]:
        """Return the command and the versions that make all figures of this run."""
        from fas.runtime.conditions import versions

        return {"command": self._session.command, "versions": dict(versions())}

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

        # As Text: square brackets in the name of a model or layer are not markup.
        table = Table(title=Text(printable(title), "table.title"), title_justify="left", header_style="bold")
        for i, name in enumerate(columns):
            numeric = all(isinstance(row[i], int | float) or row[i] is None for row in rows)
            table.add_column(Text(printable(name)), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(number(cell))) for cell in row))
        terminal = self._stream.isatty()
        Console(file=self._stream, width=None if terminal else _FILE_WIDTH).print(table)

    @contextmanager
    def progress(self, title: str) -> Iterator[Progress]:
        """Show while the block runs what is being done, parts done and in all: a bar, or lines of a log."""
        if self._session.quiet:
            yield lambda what, done, total: None
        elif self.json or not sys.stderr.isatty():
            yield Log(title)
        else:
            with bar(title) as show:
                yield show


def rows_as_json(rows: Sequence[Measurement]) -> str:
    """Return rows as a JSON list that ``read_rows`` reads."""
    return json.dumps([finite(row.to_dict()) for row in rows], indent=2, ensure_ascii=False, allow_nan=False)


def read_rows(path: Path, *, finite: bool = False) -> list[Measurement]:
    """Read the rows that a command has printed with ``--json``.

    Args:
        path: of the file.
        finite: refuse rows whose value was not finite, which JSON cannot hold; else they are left out.

    Raises:
        DataError: something else.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise TypeError("no list")
        found = [Measurement(**row) for row in rows]
        if not all(isinstance(row.conditions, dict) for row in found):
            raise TypeError("conditions are not a table")
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path} holds no rows of a fas command ({error}): write them with --json > {path}") from None
    numbers = [row for row in found if isinstance(row.value, int | float)]
    if finite and len(numbers) < len(found):
        raise DataError(f"{path} has rows without a finite number: measure them again")
    return numbers


def number(value: Any) -> str:
    """Return a cell's text: four significant digits for reals, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}" if 10 <= abs(value) < 1e6 else f"{value:.4g}"
    return str(value)
