"""The report as one HTML page that needs nothing else: no script, no address, light and dark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from fas.reporting.energy_figures import energy_figures
from fas.reporting.figures import network_figures
from fas.reporting.findings import Findings
from fas.reporting.result_figures import result_figures
from fas.reporting.tables import section, tables
from fas.reporting.theme import COLOURS, PAGE, Drawing, inline, save, style
from fas.storage.directory import write_text

# From what one wants to know first to what one looks up.
_ORDER = (
    "quality", "comparison", "spikes", "firing", "raster", "errors", "thresholds", "initial-potentials", "early-exit",
    "energy", "break-even", "sensitivity",
)  # fmt: skip


def write_report(findings: Findings, page: Path, *, figures: Path | None = None) -> list[Path]:
    """Write a report about one network.

    Args:
        findings: what was measured.
        page: the HTML file; its folder is made.
        figures: folder for the figures as SVG and PNG files; none to leave them out.

    Returns:
        The files written, the page first.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: a place that cannot be written to.
    """
    with style():
        drawings = [
            *network_figures(findings), *energy_figures(findings), *result_figures(findings.results),
        ]  # fmt: skip
        drawings.sort(key=lambda drawing: _ORDER.index(drawing.name))
        text = render(findings, drawings)
        page.parent.mkdir(parents=True, exist_ok=True)
        write_text(page, text)
        written = [page]
        if figures is not None:
            figures.mkdir(parents=True, exist_ok=True)
            for drawing in drawings:
                written += [save(drawing.figure, figures / f"{drawing.name}.{kind}") for kind in ("svg", "png")]
    return written


def render(findings: Findings, drawings: Sequence[Drawing]) -> str:
    """Return the page as text; whatever a model's files say is escaped."""
    sections = "\n".join(_section(drawing) for drawing in drawings)
    colours = {**COLOURS, **PAGE}.items()
    light, dark = ("".join(f"--{name}:{both[mode]};" for name, both in colours) for mode in (0, 1))
    template = (files("fas") / "reporting" / "page.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        light=light,
        dark=dark,
        name=escape(findings.name),
        lead=escape(_lead(findings)),
        chips="".join(f"<li><span>{escape(k)}</span> {escape(v)}</li>" for k, v in findings.facts.items()),
        tiles="".join(_tile(*entry) for entry in _tiles(findings)),
        contents="".join(f'<a href="#{d.name}">{escape(d.title)}</a>' for d in drawings),
        sections=sections,
        sample=_sample(findings),
        tables=tables(findings),
        provenance=_provenance(findings),
    )


def _section(drawing: Drawing) -> str:
    drawn = inline(drawing.figure, drawing.name, escape(drawing.title, quote=True))
    figure = f"<figure>{drawn}<figcaption>{escape(drawing.caption)}</figcaption></figure>"
    return section(drawing.name, drawing.title, figure)


def _lead(findings: Findings) -> str:
    """Return in a sentence or two how the network stands to the dense one."""
    found, dense, snn = findings.estimates[0], findings.at("ann"), findings.at("snn")
    phase = found.spiking.phases[-1]
    parts = []
    if snn is not None and dense:
        change = snn / dense - 1 if findings.score == "perplexity" else snn - dense
        shown = f"{100 * abs(change):.2g} {'%' if findings.score == 'perplexity' else 'points'}"
        parts.append(
            f"Over {findings.timesteps} time steps this network reaches {findings.score} {snn:.4g}, "
            f"{shown} {'above' if change >= 0 else 'below'} the dense network's {dense:.4g}"
        )
    fires, limit = found.spikes_per_neuron(phase), found.break_even(phase, "compute", "twin")
    if limit is not None:
        verdict = "less" if fires < limit else "more"
        match = f"it would match at {limit:.2f}" if limit > 0 else "it would not match without any spike"
        parts.append(
            f"its neurons fire {fires:.2f} times per window, and its arithmetic takes {verdict} energy than that of "
            f"its integer twin, which {match}"
        )
    else:
        parts.append(f"its neurons fire {fires:.2f} times per window")
    return "; ".join(parts) + "."


def _tiles(findings: Findings) -> Iterator[tuple[str, str, str]]:
    dense, snn, quantised = findings.at("ann"), findings.at("snn"), findings.at("quantised")
    found = findings.estimates[0]
    phase = found.spiking.phases[-1]
    if snn is not None:
        yield findings.score, f"{snn:.4g}", "" if dense is None else f"dense {dense:.4g}"
    if quantised is not None:
        yield f"{findings.score}, quantised", f"{quantised:.4g}", "control, without spikes"
    yield "same answer", f"{100 * findings.agreement:.1f} %", "of the dense network"
    fires = found.spikes_per_neuron(phase)
    yield "spikes per neuron", f"{fires:.2f}", f"firing rate {fires / findings.timesteps:.3f} per step"
    for label, accounting, baseline in (
        ("energy, as in papers", "paper", "ann"),
        ("energy of arithmetic", "compute", "twin"),
        ("energy with memory", "memory", "twin"),
    ):
        ratio = found.ratio(phase, accounting, baseline)  # type: ignore[arg-type]
        if ratio is not None:
            against = "the dense network" if baseline == "ann" else "its integer twin"
            yield label, f"× {ratio:.2f}", f"of {against}, estimated"
    limit = found.break_even(phase, "compute", "twin")
    if limit is not None:
        shown = "never" if limit <= 0 else f"{limit:.2f}"
        yield "break-even", shown, "spikes; arithmetic, twin"


def _tile(label: str, value: str, note: str) -> str:
    return f"<div class=tile><p>{escape(label)}</p><strong>{escape(value)}</strong><small>{escape(note)}</small></div>"


def _sample(findings: Findings) -> str:
    if findings.sample is None:
        return ""
    prompt, written = (escape(part) for part in findings.sample)
    text = "The prompt, and how the spiking network continues it."
    return section("sample", "What it writes", f"<pre><b>{prompt}</b>{written}</pre>", text)


def _provenance(findings: Findings) -> str:
    commands = dict.fromkeys([findings.command, *(str(r.conditions.get("command", "")) for r in findings.results)])
    shown = "".join(f"<pre>{escape(command)}</pre>" for command in commands if command)
    versions = ", ".join(f"{name} {version}" for name, version in findings.versions.items())
    return (
        f"{shown}<p>Data: {escape(findings.data)}. Measured in {findings.seconds:.0f} s. {escape(versions)}. "
        "Counts and scores are measured; energies are estimates and stand in columns of their own.</p>"
    )
