"""The page in a browser, opened from disk: every figure drawn, in light and dark, and nothing asked for."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse

import pytest

from fas.reporting.page import write_report
from fas.reporting.theme import PAGE

from .test_page import FIGURES
from .tiny_findings import everything

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser here: apt-get install chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip
# A browser takes orders on file 3 and answers on file 4.
_EXEC = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)

_FIGURES = """[...document.querySelectorAll('figure svg')].map(svg => {
  const box = svg.getBoundingClientRect();
  const inside = e => { const b = e.getBoundingClientRect();
    return b.left >= box.left - 1 && b.right <= box.right + 1 && b.top >= box.top - 1 && b.bottom <= box.bottom + 1; };
  const texts = [...svg.querySelectorAll('text')];
  const marks = [...svg.querySelectorAll('path')].map(p => p.getBBox()).filter(b => b.width + b.height > 0);
  return {name: svg.closest('section').id, width: box.width, height: box.height, marks: marks.length,
    fill: getComputedStyle(texts[0]).fill, cut: texts.filter(t => !inside(t)).map(t => t.textContent)};
})"""


class Browser:
    """One page of a headless browser, driven by its own protocol over pipes."""

    def __init__(self, profile: Path) -> None:
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        command = [sys.executable, "-c", _EXEC, str(orders), str(answers), str(BROWSER), *FLAGS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}"], pass_fds=(orders, answers), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(orders)
        os.close(answers)
        self._number, self._rest, self._session = 0, b"", {}
        self.events: list[dict] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Network", "Log", "Runtime"):
            self(f"{domain}.enable")

    def __call__(self, method, **parameters):
        self._number += 1
        order = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._orders, json.dumps(order).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self):
        while b"\0" not in self._rest:
            part = os.read(self._answers, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def open(self, page: Path) -> None:
        self("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def show(self, mode: str, width: int) -> None:
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": mode}])
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)

    def value(self, expression: str):
        return self("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def close(self) -> None:
        os.close(self._orders)
        os.close(self._answers)
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(everything(), tmp_path_factory.mktemp("page") / "page.html")[0]


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    try:
        found = Browser(tmp_path_factory.mktemp("profile"))
    except (AssertionError, BrokenPipeError):
        pytest.skip(f"{BROWSER} does not start here")
    found.open(page)
    yield found
    found.close()


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_figure_is_drawn(browser, mode):
    browser.show(mode, 1180)
    drawn = browser.value(_FIGURES)
    assert [figure["name"] for figure in drawn] == FIGURES
    for figure in drawn:
        assert figure["width"] > 700 and figure["height"] > 100 and figure["marks"] > 10, figure
        assert figure["cut"] == [], figure
        channels = [int(part) for part in figure["fill"].removeprefix("rgb(").removesuffix(")").split(",")]
        assert (sum(channels) > 380) == (mode == "dark"), figure
    below = browser.value("getComputedStyle(document.body).backgroundColor")
    expected = PAGE["page"][mode == "dark"]
    assert below == f"rgb({', '.join(str(int(expected[i : i + 2], 16)) for i in (1, 3, 5))})"


@pytest.mark.parametrize("width", [360, 1180])
def test_nothing_sticks_out_of_the_window(browser, width):
    browser.show("light", width)
    assert browser.value("document.documentElement.scrollWidth") <= width


def test_it_says_nothing_on_the_console_and_asks_for_nothing(browser, page):
    browser.show("light", 1180)
    methods = [event["method"] for event in browser.events]
    assert "Runtime.exceptionThrown" not in methods and "Runtime.consoleAPICalled" not in methods
    assert [event for event in browser.events if event["method"] == "Log.entryAdded"] == []
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert asked == [page.as_uri()] and urlparse(asked[0]).scheme == "file"
    assert browser.value("performance.getEntriesByType('resource').length") == 0


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_a_screenshot_shows_it(browser, mode, tmp_path):
    from matplotlib.image import imread

    browser.show(mode, 1180)
    path = tmp_path / "page.png"
    path.write_bytes(base64.b64decode(browser("Page.captureScreenshot", format="png")["data"]))
    pixels = imread(path)[..., :3]
    assert pixels.shape[:2] == (900, 1180)
    # Most of it is empty ground; titles, tiles and the first figure lie on it.
    assert (float(pixels.mean()) > 0.8) == (mode == "light") and float(pixels.std()) > 0.05
