"""Colours and type of the figures: drawn once, shown in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fas.errors import MissingExtraError
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
    "query": "violet",
    "key": "rose",
    "value": "sand",
    "attention_weight": "quantised",
}
_WIDTH = 9.2  # inches; the page scales figures to its column


def new_figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """Return an empty figure of the page's width and its axes.

    Args:
        height: in inches.
        rows: of axes.
        columns: of axes.
        options: of matplotlib's ``Figure.subplots``.
    """
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
    "text.parse_math": False,  # names of layers are no formulas
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
