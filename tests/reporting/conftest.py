"""One page with everything, for all that look at it."""

from __future__ import annotations

import pytest

from fas.reporting.page import write_report

from .tiny_findings import everything


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return write_report(everything(), folder / "new" / "page.html", figures=folder / "figures")
