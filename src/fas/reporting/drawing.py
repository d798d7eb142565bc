"""What every figure of a report is made of: the drawing itself, rows with names, logarithmic axes, legends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fas.reporting.findings import SiteFinding
from fas.reporting.theme import LIGHT, ROLES


@dataclass(frozen=True)
class Drawing:
    """One figure.

    Attributes:
        name: of its files and of its place in the page.
        title: what it is about.
        caption: what one sees.
        figure: matplotlib's.
    """

    name: str
    title: str
    caption: str
    figure: Any


def short(path: str, width: int = 34) -> str:
    """Return a name on one line, with its beginning left out where it is long."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in path).split())
    return line if len(line) <= width else f"…{line[1 - width :]}"


def height(rows: int) -> float:
    """Return the inches that so many rows of bars take."""
    return 0.235 * rows + 1.0


def named_rows(axes: Any, names: Sequence[str]) -> None:
    """Put one name beside every row, the first one on top."""
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def logarithmic(axis: Any) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5 times powers of ten (all digits on short ranges).

    Args:
        axis: ``axes.xaxis`` or ``axes.yaxis`` of axes that are drawn already.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes, name = axis.axes, axis.axis_name
    getattr(axes, f"set_{name}scale")("log")
    low, high = sorted(getattr(axes, f"get_{name}lim")())
    subs = (1.0, 2.0, 5.0) if high > 4 * low else (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def role_legend(figure: Any, sites: Sequence[SiteFinding]) -> None:
    """Say above a figure which colour stands for which role."""
    from matplotlib.patches import Patch

    shown = dict.fromkeys(site.role for site in sites)
    handles = [Patch(color=LIGHT[ROLES[role]], label=role.replace("_", " ")) for role in shown]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), borderaxespad=0.0)


def note(axes: Any, text: str, at: tuple[float, float], offset: tuple[float, float], **options: Any) -> None:
    """Write a small remark beside a point; ``offset`` is in points of type."""
    axes.annotate(
        text, at, textcoords="offset points", xytext=offset, **{"fontsize": 8, "color": LIGHT["muted"], **options}
    )
