"""The site: Markdown pages of this folder, the reference from docstrings, pictures drawn from the library itself."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from pictures import draw_all

import fas

project = "fas"
author = "the fas authors"
release = version = fas.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
html_theme = "furo"
html_title = "fas"
html_static_path = ["images"]
exclude_patterns = ["_build"]
# The README says where files lie in the repository; on the site these links lead to the pages.
suppress_warnings = ["myst.xref_missing", "myst.header"]


def escape_shapes(*event: object) -> None:
    """Shapes such as [T, *B, C] are no emphasis."""
    lines = event[-1]
    assert isinstance(lines, list)
    lines[:] = [line.replace("*B", "\\*B") for line in lines]


def setup(app: Any) -> None:
    """Draw the pictures before the pages that show them are read."""
    draw_all(Path(__file__).parent / "images")
    app.connect("autodoc-process-docstring", escape_shapes)
