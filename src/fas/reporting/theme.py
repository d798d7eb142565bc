"""What every figure of a report is made of: colours and type, the drawing itself, axes, legends, files.

Figures are drawn once, and shown in light and in dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fas.errors import MissingExtraError
from fas.reporting.findings import SiteFinding
from fas.storage.directory import whole_file

# What a colour stands for, in light and in dark. Figures are drawn in the light one; in the page each becomes a
# variable of the style sheet. Blue spikes, grey is dense, orange is quantised, everywhere.
COLOURS = {
    "ink": ("#1c2026", "#e7e9ec"),
    "muted": ("#66707c", "#9aa3ae"),
    "grid": ("#e4e7eb", "#2c3239"),
    "spiking": ("#2f6bd8", "#7ba7ff"),
    "spiking-soft": ("#6f93e0", "#4f74bd"),
    "dense": ("#858e99", "#8b95a1"),
    "quantised": ("#d07a1f", "#f0a95a"),
    "green": ("#2b9470", "#5cc9a0"),
    "violet": ("#7c56c4", "#b394f0"),
    "rose": ("#c04f80", "#ee8fb6"),
    "sand": ("#a08a24", "#d9c778"),
}
# What the page lies on, and figures and tables on it.
PAGE = {"page": ("#f6f7f9", "#14171a"), "card": ("#ffffff", "#1b1f24")}
LIGHT = {name: light for name, (light, _) in COLOURS.items()}
ROLES = {
    "mlp": "spiking",
    "linear_input": "green",
    "conv_input": "rose",
    "query": "violet",
    "key": "rose",
    "value": "sand",
    "attention_weight": "quantised",
}
_WIDTH = 9.2  # inches; the page scales figures to its column


def new_figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """Return an empty figure of the page's width, ``height`` inches high, and its axes (``Figure.subplots``)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


@contextmanager
def style() -> Iterator[None]:
    """Draw in the report's style while the block runs.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise MissingExtraError("figures are drawn with matplotlib: pip install 'fas[plot]'") from None
    with matplotlib.rc_context(_STYLE):
        yield


_STYLE: dict[Any, Any] = {
    "axes.edgecolor": LIGHT["muted"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": LIGHT["muted"],
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": LIGHT["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.facecolor": "none",
    "figure.constrained_layout.h_pad": 0.06,
    "font.size": 9,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": LIGHT["ink"],
    "text.color": LIGHT["ink"],
    "text.parse_math": False,  # names of layers are not formulas
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
}


def save(figure: Any, path: Path) -> Path:
    """Write a figure in the format of the file's ending, in light colours on white, and return the file."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": path.stem}), whole_file(path) as beside:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(beside, dpi=160, facecolor="white", metadata=metadata)
    return path


def inline(figure: Any, name: str, description: str) -> str:
    """Return a figure as an SVG element that stands in a page: no address in it, colours by the page.

    Args:
        figure: a matplotlib figure.
        name: unique in the page; goes in front of every id.
        description: what a reader who does not see it should know, escaped already.
    """
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    head, body = drawn.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    for variable, colour in {**LIGHT, "card": PAGE["card"][0]}.items():
        body = body.replace(colour, f"var(--{variable})")
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'(url\(|href=")#', rf"\1#{name}-", body)
    body = re.sub(r"font: [^;\"]*?([\d.]+px)[^;\"]*", r"font-size: \1", body)
    return f'<svg {box.group(0)} role="img" aria-label="{description}">{body}'


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


def site_rows(figure: Any, axes: Any, sites: Sequence[SiteFinding]) -> None:
    """Put the name of a site beside every row, and say above the figure which colour stands for which role."""
    named_rows(axes, [site.path for site in sites])
    from matplotlib.patches import Patch

    shown = dict.fromkeys(site.role for site in sites)
    handles = [Patch(color=LIGHT[ROLES[role]], label=role.replace("_", " ")) for role in shown]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), borderaxespad=0.0)


def over_time(axes: Any, steps: Sequence[int], score: str) -> None:
    """Make axes that show a score over time steps, of which each has its mark."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.minorticks_off()
    if score == "perplexity":
        logarithmic(axes.yaxis)
    axes.set(xlabel="time steps T", ylabel=score, title="Quality over time steps")


def note(axes: Any, text: str, at: tuple[float, float], offset: tuple[float, float], **options: Any) -> None:
    """Write a small remark beside a point; ``offset`` is in points of type."""
    axes.annotate(
        text, at, textcoords="offset points", xytext=offset, **{"fontsize": 8, "color": LIGHT["muted"], **options}
    )
