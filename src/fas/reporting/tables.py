"""The tables of a report, as HTML; whatever they show is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from fas.energy.estimate import ACCOUNTINGS, Accounting, Estimate
from fas.energy.operations import Phase
from fas.reporting.findings import Findings
from fas.reporting.result_figures import gather


def tables(findings: Findings) -> str:
    """Return every table of the page, each in a section of its own."""
    parts = (_results(findings), _sites(findings), _energies(findings))
    return "\n".join(part for part in parts if part)


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose cells are text; columns of numbers stand to the right."""
    filled = [list(row) for row in rows]
    right = [all(_is_number(row[i]) for row in filled) for i in range(len(titles))]
    head = "".join(f"<th{_side(right[i])}>{escape(title)}</th>" for i, title in enumerate(titles))
    body = "".join(
        "<tr>" + "".join(f"<td{_side(right[i])}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in filled
    )
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _side(right: bool) -> str:
    return " class=n" if right else ""


def _is_number(cell: str) -> bool:
    try:
        float(cell.removeprefix("> ").removesuffix(" %").replace(",", "") or 0)
    except ValueError:
        return cell in ("never", "no price")
    return True


def section(name: str, title: str, content: str, text: str = "") -> str:
    """Return a section of the page; ``content`` is HTML, ``text`` in front of it is not."""
    lead = f"<p>{escape(text)}</p>" if text else ""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{lead}{content}</section>'


def significant(value: float | None, digits: int = 3) -> str:
    """Return a number with as many significant digits, trailing zeros too, and never with an exponent."""
    if value is None:
        return ""
    shown = f"{value:#.{digits}g}".removesuffix(".")
    return f"{value:,.{digits}f}" if "e-" in shown else f"{float(shown):,.0f}" if "e" in shown else shown


def _results(findings: Findings) -> str:
    found = gather(findings.results)
    points = [point for curve in found.curves.values() for point in curve]
    if not points:
        return ""
    text = f"{found.score.capitalize()} of other conversions of this model; dense {significant(found.dense, 4)}."
    score = found.score
    columns = {
        "method": [point.conditions["plan"] for point in points],
        **{
            name: [str(point.conditions.get(key, "")) for point in points]
            for name, key in (("coverage", "coverage"), ("neuron", "neuron"), ("T", "timesteps"), ("levels", "levels"))
        },
        score: [significant(point.value, 4) for point in points],
        "× dense" if score == "perplexity" else "− dense": [_relation(p.value, found.dense, score) for p in points],
        "spikes per neuron": [significant(point.spikes) for point in points],
        "µJ per token, estimated": ["" if p.energy is None else significant(p.energy / 1e6) for p in points],
    }
    kept = {name: cells for name, cells in columns.items() if any(cells)}
    shown = table(list(kept), zip(*kept.values(), strict=True))
    return section("results", "Methods in numbers", shown, text)


def _relation(value: float, dense: float | None, score: str) -> str:
    if not dense:
        return ""
    return f"{value / dense:.4f}" if score == "perplexity" else f"{value - dense:+.4f}"


def _sites(findings: Findings) -> str:
    rows = [
        [
            site.path, site.role.replace("_", " "), f"{site.spikes_per_neuron:.3f}",
            f"{site.spikes_per_neuron / findings.timesteps:.4f}", f"{100 * site.silent:.1f} %",
            significant(site.coarse), significant(float(site.threshold.median())),
            "" if site.code_error is None else f"{100 * site.code_error:.3g} %",
            "" if site.error is None else f"{100 * site.error:.3g} %",
        ]
        for site in findings.sites
    ]  # fmt: skip
    titles = [
        "site", "role", "spikes per neuron", "firing rate", "silent", "θ before (coarse)", "θ after, median",
        "error of its code", "error of its output",
    ]  # fmt: skip
    summary = f"<summary>{len(rows)} sites: firing, thresholds, errors</summary>"
    return section("sites", "Sites in numbers", f"<details>{summary}{table(titles, rows)}</details>")


def energy_cells(found: Estimate, phase: Phase, accounting: Accounting) -> list[str]:
    """Return µJ per token of every network; where operations have no price the number is a lower bound."""
    cells = []
    for network in found.names:
        value, partial = found.energy(phase, accounting, network), bool(found.unpriced(phase, accounting, network))
        if value is None or (partial and not value):
            cells.append("" if value is None else "no price")
        else:
            cells.append(("> " if partial else "") + significant(value / 1e6))
    return cells


def _energies(findings: Findings) -> str:
    estimates = findings.estimates
    rows = [
        [found.prices.name, phase, accounting, *energy_cells(found, phase, accounting)]
        for found in estimates
        for phase in found.spiking.phases
        for accounting in ACCOUNTINGS
    ]
    details = "".join(_sources(found) for found in estimates)
    shown = table(["prices", "phase", "accounting", *estimates[0].names.values()], rows) + details
    text = "µJ per token, estimated; where a number has > in front, some operations have no price and are left out."
    return section("energies", "Energy in numbers", shown, text)


def _sources(found: Estimate) -> str:
    sources = "".join(
        f"<li><b>{escape(name)}</b> {constant.value:g} {escape(constant.unit)}: {escape(constant.source)}"
        + (f" <em>Not verified: {escape(constant.why)}.</em>" if constant.unverified else "")
        + "</li>"
        for name, constant in found.prices.constants.items()
    )
    return (
        f"<details><summary>Constants of {escape(found.prices.name)} and where they are from</summary>"
        f"<p>{escape(found.prices.title)}: {escape(found.prices.reference)}</p><ul>{sources}</ul></details>"
    )
