"""The page: complete, closed, asking for nothing, and safe from what a model's files say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import get_args

import pytest

from fas.energy.rivals import Rival
from fas.errors import DataError
from fas.reporting.energy_figures import energy_figures
from fas.reporting.figures import network_figures
from fas.reporting.page import render, write_report
from fas.reporting.result_figures import draw, gather, pareto, result_figures
from fas.reporting.tables import significant, table
from fas.reporting.theme import COLOURS, PAGE, ROLES, short, style
from fas.types import Role

from .tiny_findings import Page, conversions, everything, findings, result

FIGURES = [
    "quality", "comparison", "firing", "raster", "errors", "thresholds", "initial-potentials", "early-exit",
    "energy", "break-even", "sensitivity",
]  # fmt: skip
TABLES = ["results", "sites", "energies", "provenance"]
EVIL = "\"><script>alert(1)</script><img src=//evil.example/x> $x^2$ & ' {name} $name"


@pytest.fixture(scope="module")
def text(written):
    return written[0].read_text(encoding="utf-8")


def test_every_figure_is_there_and_drawn(text):
    page = Page(text)
    assert page.open == []
    sections = [attributes["id"] for attributes in page.all("section")]
    assert sections == [*FIGURES, "sample", *TABLES]
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
    # And a browser would refuse if it did, scripts too.
    policies = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_ids_are_unique_and_references_lead_somewhere(text):
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert references and references <= set(ids)


def test_light_and_dark(text):
    assert "prefers-color-scheme:dark" in text and 'content="light dark"' in text
    dark = text[text.index("prefers-color-scheme:dark") :]
    for name, (light, other) in {**COLOURS, **PAGE}.items():
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
        versions={EVIL: EVIL}, sample=(EVIL, EVIL),
        rasters=[replace(raster, path=EVIL) for raster in found.rasters],
        results=[result(EVIL, 4, 3.0, neuron=EVIL), result("x", 4, 2.0), result("coarse", 4, 2.0, coverage=EVIL)],
    )  # fmt: skip
    page = Page(write_report(evil, tmp_path / "page.html")[0].read_text(encoding="utf-8"))
    assert page.open == [] and not page.all("script") and not page.all("img")
    assert EVIL in "".join(page.texts)


def test_the_same_findings_give_the_same_page(text, tmp_path):
    assert write_report(everything(), tmp_path / "page.html")[0].read_text(encoding="utf-8") == text


def test_parts_that_were_not_measured_are_left_out():
    found = findings()
    sites = [replace(site, coarse=None, error=None) for site in found.sites]
    less = replace(found, exits=[], rasters=[], sites=sites, estimates=found.estimates[1:], results=[])
    with style():
        drawings = {d.name: d for d in (*network_figures(less), *energy_figures(less), *result_figures(less.results))}
    # Loihi has no price for a dense network: no bill beside it, and no break-even.
    assert list(drawings) == ["quality", "firing", "thresholds", "initial-potentials"]
    assert "were not fitted again" in drawings["thresholds"].caption
    sections = [attributes["id"] for attributes in Page(render(less, [])).all("section")]
    assert sections == ["sites", "energies", "provenance"]


def luminance(colour):
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("mode", [0, 1])
def test_colours_stand_out(mode):
    for name, both in COLOURS.items():
        for place in PAGE.values():
            dark, light = sorted((luminance(both[mode]), luminance(place[mode])))
            # WCAG 2 asks 4.5 of text and 3 of marks; of marks only where they are drawn, on a card.
            asked = 4.5 if name in ("ink", "muted") else 3 if place is PAGE["card"] and name != "grid" else 1
            assert (light + 0.05) / (dark + 0.05) >= asked, name
    assert set(ROLES.values()) <= set(COLOURS) and set(ROLES) == set(get_args(Role))


def test_a_comparison():
    found = gather(conversions())
    assert (found.score, found.dense, found.dense_energy) == ("perplexity", 5.0, 4e6)
    assert list(found.curves) == ["mlp, phase", "mlp, signed_if"]
    (first, last) = found.curves["mlp, signed_if"]
    assert (first.timesteps, first.value, first.spikes, first.energy) == (2, 6.5, 0.75, 3e6)
    assert (last.timesteps, last.value) == (4, 5.75)
    with style():
        drawing = result_figures(conversions())[0]
    left, right = drawing.figure.axes
    lines = [(line.get_marker(), list(line.get_xdata()), list(line.get_ydata())) for line in left.lines]
    assert ("o", [2, 4], [6.5, 5.75]) in lines
    (front,) = [line for line in right.lines if line.get_linestyle() == ":"]
    # Of (2, 6.0), (4, 5.5), (3, 6.5), (6, 5.75): µJ and perplexity.
    assert front.get_xydata().tolist() == [[2.0, 6.0], [4.0, 5.5]]


def test_pareto_against_all_pairs():
    points = [(3.0, 1.0), (1.0, 5.0), (2.0, 5.0), (2.0, 4.0), (4.0, 1.0), (0.5, 9.0), (2.0, 3.0), (5.0, 0.5)]
    for lower in (True, False):
        sign = 1 if lower else -1
        beaten = {
            one for one in points for other in points
            if other != one and other[0] <= one[0] and sign * other[1] <= sign * one[1]
        }  # fmt: skip
        assert pareto(points, lower=lower) == sorted(set(points) - beaten)
    assert pareto([], lower=True) == []


def test_dense_networks_stand_where_their_arithmetic_takes_as_much(tmp_path):
    found = findings().estimates[0]
    rivals = [Rival("twin_4", 5.0, 4, found.dense), Rival("sparse", 4.8, None, found.dense, 0.3)]
    rivals.append(Rival("twin_2", 9.0, 2, found.dense))
    found = replace(found, rivals=rivals, scores={"snn": 5.0, "ann": 4.5})
    rows = list(found.measurements(neuron="phase", coverage="full"))
    with style():
        (drawing,) = result_figures(rows)
        draw(rows, tmp_path / "new" / "spikes.svg")
    assert (tmp_path / "new" / "spikes.svg").stat().st_size > 1000
    (axes,) = drawing.figure.axes
    marks = {line.get_label(): (line.get_marker(), *line.get_xydata().tolist()) for line in axes.lines}
    assert marks.pop("dense")[1:] == ([0, 4.5], [1, 4.5])
    twin, sparse = (found.break_even("prefill", "compute", name) for name in ("twin_4_zeros_skipped", "sparse"))
    # The twin of two bits, twice as bad, is left out.
    assert marks == {
        "phase, full": ("o", [found.spikes_per_neuron("prefill"), 5.0]),
        "integers": ("s", [max(twin, 0), 5.0]),
        "dense, small inputs skipped": ("D", [max(sparse, 0), 4.8]),
    }


def test_rows_without_perplexities_are_not_drawn(tmp_path):
    with pytest.raises(DataError, match="no perplexity was measured"):
        draw(list(findings().estimates[0].measurements()), tmp_path / "spikes.svg")


def test_methods_at_one_number_of_steps():
    with style():
        (drawing,) = result_figures([result("fas", 4, 6.0), result("las", 4, 5.5)])
    assert drawing.name == "comparison"
    assert list(gather([result("fas", 4, 6.0), result("las", 4, 5.5)]).curves) == ["fas, mlp, phase", "las, mlp, phase"]


def potentials(sites):
    with style():
        drawings = {drawing.name: drawing for drawing in network_figures(replace(findings(), sites=sites))}
    drawn = drawings["initial-potentials"]
    return drawn.caption, [axes.get_xlabel() for axes in drawn.figure.axes]


def test_potentials_that_calibration_moves_are_told_from_those_it_leaves():
    found = findings()
    moved = [replace(site, v_init=site.v_init + 0.1, offset=0 * site.offset) for site in found.sites]
    caption, labels = potentials(moved)
    assert "Calibration moves them channel by channel" in caption and "bias current" not in caption and len(labels) == 1
    left = [replace(site, v_init=0 * site.v_init + 0.5, offset=site.offset + 0.1) for site in found.sites]
    caption, labels = potentials(left)
    assert "Calibration has left all of them there" in caption and labels[1] == "bias current μ / θ"


def test_a_table_escapes_and_puts_numbers_right():
    text = table(["a", "<b>"], [["> 1.5", "x & y"], ["never", "2"]])
    assert "<th class=n>a</th><th>&lt;b&gt;</th>" in text
    assert "<td class=n>&gt; 1.5</td><td>x &amp; y</td>" in text and "<td class=n>never</td>" in text


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [(None, 3, ""), (7.7, 3, "7.70"), (19.0, 4, "19.00"), (1190.4, 3, "1,190"), (107.2, 3, "107"),
     (0.0005, 3, "0.000500"), (0.0, 3, "0.00"), (0.00000123, 3, "0.000"), (999.6, 3, "1,000")],
)  # fmt: skip
def test_numbers(value, digits, shown):
    assert significant(value, digits) == shown


def test_names_of_any_kind_take_one_line():
    assert short("a.b") == "a.b" and short("x" * 50, 10) == "…" + "x" * 9
    assert short("a\nb\x00\x1b[0m  c") == "a b [0m c"
