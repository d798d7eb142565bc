"""The page: complete, closed, asking for nothing, and safe from what a model's files say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from fas.report.page import write_report
from fas.report.result_figures import result_figures
from fas.report.theme import COLOURS, style

from .tiny_findings import Page, findings, result

FIGURES = [
    "quality", "firing", "errors", "thresholds", "initial-potentials", "raster", "early-exit", "energy", "break-even",
    "comparison",
]  # fmt: skip
EVIL = "\"><script>alert(1)</script><img src=//evil.example/x> $x^2$ & ' {name} $name"
BROWSER = next(
    (found for name in ("chromium-headless-shell", "chromium", "google-chrome") if (found := shutil.which(name))), None
)


def everything():
    rows = [result("fas", steps, 30.0 / steps) for steps in (2, 4)] + [result("dense", 0, 5.0, network="ann")]
    return replace(findings(), results=rows)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return write_report(everything(), folder / "new" / "page.html", figures=folder / "figures")


@pytest.fixture(scope="module")
def text(written):
    return written[0].read_text(encoding="utf-8")


def test_every_figure_is_there_and_drawn(text):
    page = Page(text)
    assert page.open == []
    sections = [attributes["id"] for attributes in page.all("section")]
    for name in FIGURES:
        assert sections.count(name) == 1
        body = re.search(rf'<section id="{name}">(.*?)</section>', text, re.DOTALL).group(1)
        # Axes, and marks in the colours of the style sheet.
        assert body.count("<path") > 10, name
        assert "var(--spiking)" in body or "var(--green)" in body, name
        assert len(re.search(r"<figcaption>(.*?)</figcaption>", body, re.DOTALL).group(1)) > 60
    assert len(page.all("svg")) == len(FIGURES) and len(page.all("figcaption")) == len(FIGURES)


def test_it_asks_no_network_for_anything(text):
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image"} & {
        t for t, _ in page.elements
    }
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "xlink:href", "src", "action", "srcset"):
                assert value.startswith("#")
    assert re.findall(r"url\((?!#)", text) == [] and "@import" not in text
    assert re.findall(r"(?:https?:)?//[\w.]+", text) == []


def test_ids_are_unique_and_references_lead_somewhere(text):
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert references and references <= set(ids)


def test_light_and_dark(text):
    assert "prefers-color-scheme:dark" in text and 'content="light dark"' in text
    dark = text[text.index("prefers-color-scheme:dark") :]
    for name, (light, other) in COLOURS.items():
        assert f"--{name}:{light};" in text and f"--{name}:{other};" in dark
        # No figure keeps a colour of its own.
        assert text.count(light) == 1, name


def test_what_is_said(text):
    page = Page(text)
    said = " ".join(page.texts)
    for part in (
        "fas report tiny",
        "fas compare <tiny>",
        "fas 0.1",
        "Horowitz 2014",
        "Not verified",
        "break-even",
        "loihi",
    ):
        assert part in said, part
    assert "> " in said  # sums of a cost model that has not every price


def test_files(written):
    names = sorted(path.name for path in written[1:])
    assert names == sorted(f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png"))
    for path in written[1:]:
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
        else:
            assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def test_what_a_model_says_of_itself_is_text(tmp_path):
    found = findings()
    sites = [replace(site, path=EVIL) for site in found.sites]
    evil = replace(
        found, name=EVIL, facts={**found.facts, EVIL: EVIL}, sites=sites, command=EVIL, data=EVIL,
        versions={EVIL: EVIL}, rasters=[replace(raster, path=EVIL) for raster in found.rasters],
        results=[result(EVIL, 4, 3.0), result("x", 4, 2.0)],
    )  # fmt: skip
    page = Page(write_report(evil, tmp_path / "page.html")[0].read_text(encoding="utf-8"))
    assert page.open == [] and not page.all("script") and not page.all("img")
    assert EVIL in "".join(page.texts)


def test_the_same_findings_give_the_same_page(text, tmp_path):
    assert write_report(everything(), tmp_path / "page.html")[0].read_text(encoding="utf-8") == text


def test_parts_that_were_not_measured_are_left_out(tmp_path):
    found = findings()
    sites = [replace(site, coarse=None, error=None) for site in found.sites]
    less = replace(found, exits=[], rasters=[], sites=sites, estimates=found.estimates[1:], results=[])
    text = write_report(less, tmp_path / "page.html")[0].read_text(encoding="utf-8")
    shown = [attributes["id"] for attributes in Page(text).all("section")]
    # Loihi has no price for a dense network: no bill beside it, and no break-even.
    assert not set(shown) & {"early-exit", "raster", "errors", "energy", "break-even", "comparison", "results"}
    assert {"quality", "firing", "thresholds", "energies"} <= set(shown)
    assert "were not fitted again" in text


def test_an_ablation():
    rows = [result(plan, 4, value) for plan, value in (("coarse", 12.0), ("coarse + fine", 11.0))]
    with style():
        (drawing,) = result_figures([*rows, result("coarse", 4, 0.3, "spikes_per_neuron")])
        assert result_figures([]) == []
    assert drawing.title == "What each part of the calibration is worth"
    (axes,) = drawing.figure.axes
    assert [bar.get_width() for bar in axes.patches] == [12.0, 11.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["coarse, mlp, phase", "coarse + fine, mlp, phase"]


_PROBE = """<script>
document.title = JSON.stringify([...document.querySelectorAll('figure svg')].map(svg => {
  const box = svg.getBoundingClientRect();
  const marks = [...svg.querySelectorAll('path')].map(p => p.getBBox()).filter(b => b.width + b.height > 0);
  const fill = getComputedStyle(svg.querySelector('text')).fill;
  return [svg.closest('section').id, box.width, box.height, marks.length, fill];
}))</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no browser here: apt-get install chromium-headless-shell")
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_a_browser_draws_every_figure(text, tmp_path, mode):
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", _PROBE), encoding="utf-8")
    scheme = {"light": 1, "dark": 0}[mode]
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1180,900", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL).group(1)
    drawn = json.loads(title.replace("&quot;", '"').replace("&amp;", "&"))
    assert [name for name, *_ in drawn] == FIGURES
    for name, width, height, marks, fill in drawn:
        assert width > 700 and height > 150 and marks > 10, name
        channels = [int(part) for part in re.findall(r"\d+", fill)]
        assert (sum(channels) > 380) == (mode == "dark"), (name, fill)
