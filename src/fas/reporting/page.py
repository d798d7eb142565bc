"""The report as one HTML page that needs nothing else: no script, no address, light and dark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from string import Template

from fas.reporting.drawing import Drawing
from fas.reporting.energy_figures import energy_figures
from fas.reporting.figures import network_figures
from fas.reporting.findings import Findings
from fas.reporting.parameter_figures import parameter_figures
from fas.reporting.result_figures import result_figures
from fas.reporting.tables import tables
from fas.reporting.theme import COLOURS, PAGE, inline, save, style
from fas.storage.directory import write_text

# From what one wants to know first to what one looks up.
_ORDER = (
    "quality", "comparison", "firing", "raster", "errors", "thresholds", "initial-potentials", "early-exit",
    "energy", "break-even",
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
            *network_figures(findings), *parameter_figures(findings), *energy_figures(findings),
            *result_figures(findings.results),
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
    return _PAGE.substitute(
        light=_variables(0),
        dark=_variables(1),
        style=_STYLE,
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


def _variables(mode: int) -> str:
    return "".join(f"--{name}:{both[mode]};" for name, both in {**COLOURS, **PAGE}.items())


def _section(drawing: Drawing) -> str:
    drawn = inline(drawing.figure, drawing.name, escape(drawing.title, quote=True))
    return (
        f'<section id="{drawing.name}"><h2>{escape(drawing.title)}</h2>'
        f"<figure>{drawn}<figcaption>{escape(drawing.caption)}</figcaption></figure></section>"
    )


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
        yield f"{findings.score}, quantised", f"{quantised:.4g}", "as many levels, no spikes"
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
    return (
        '<section id="sample"><h2>What it writes</h2><p>The prompt, and how the spiking network goes on.</p>'
        f"<pre><b>{prompt}</b>{written}</pre></section>"
    )


def _provenance(findings: Findings) -> str:
    commands = dict.fromkeys([findings.command, *(str(r.conditions.get("command", "")) for r in findings.results)])
    shown = "".join(f"<pre>{escape(command)}</pre>" for command in commands if command)
    versions = ", ".join(f"{name} {version}" for name, version in findings.versions.items())
    return (
        f"{shown}<p>Data: {escape(findings.data)}. Measured in {findings.seconds:.0f} s. {escape(versions)}. "
        "Counts and scores are measured; energies are estimates and stand in columns of their own.</p>"
    )


_STYLE = """
*{box-sizing:border-box}
html{scroll-behavior:smooth}
body{margin:0;background:var(--page);color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main,header,nav,footer{max-width:1060px;margin:0 auto;padding:0 24px}
header{padding-top:52px}
h1{font-size:34px;line-height:1.15;letter-spacing:-.02em;margin:.1em 0 .35em;overflow-wrap:anywhere}
.over{color:var(--spiking);font-weight:600;font-size:14px;margin:0}
.lead{font-size:19px;line-height:1.5;max-width:46em;margin:0 0 22px}
.chips{list-style:none;display:flex;flex-wrap:wrap;gap:8px;padding:0;margin:0 0 30px}
.chips li{border:1px solid var(--grid);border-radius:99px;padding:3px 12px;font-size:13.5px;background:var(--card)}
.chips span{color:var(--muted)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(215px,1fr));gap:12px;margin-bottom:30px}
.tile{background:var(--card);border:1px solid var(--grid);border-radius:12px;padding:14px 16px}
.tile p{margin:0;font-size:13px;color:var(--muted)}
.tile strong{display:block;font-size:27px;line-height:1.25;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.tile small{color:var(--muted);font-size:12.5px}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:14px;padding-bottom:10px}
nav a{color:var(--muted);text-decoration:none;border-bottom:1px solid var(--grid)}
nav a:hover{color:var(--spiking);border-color:var(--spiking)}
section{margin:44px 0}
h2{font-size:21px;letter-spacing:-.01em;margin:0 0 12px}
figure{margin:0;background:var(--card);border:1px solid var(--grid);border-radius:14px;padding:20px 22px 18px}
figure svg{display:block;width:100%;height:auto;font-family:inherit}
figcaption{color:var(--muted);font-size:14.5px;line-height:1.5;margin-top:14px;max-width:60em}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--grid);border-radius:12px}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:7px 10px;border-bottom:1px solid var(--grid);white-space:nowrap}
th{color:var(--muted);font-weight:600;white-space:normal;vertical-align:bottom;line-height:1.3}
.n{text-align:right}
tbody tr:last-child td{border-bottom:0}
details{margin-top:14px;font-size:14px}
details>.scroll{margin-top:12px}
li{overflow-wrap:anywhere}
summary{cursor:pointer;color:var(--muted)}
pre{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:12px 14px;overflow-x:auto;
  font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
footer{color:var(--muted);font-size:14px;padding-bottom:60px}
@media print{nav{display:none}section{break-inside:avoid}}
"""

_PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$name as a spiking network</title>
<style>
:root{$light}
@media (prefers-color-scheme:dark){:root{$dark}}
$style</style>
</head>
<body>
<header>
<p class="over">Spiking network report</p>
<h1>$name</h1>
<p class="lead">$lead</p>
<ul class="chips">$chips</ul>
<div class="tiles">$tiles</div>
</header>
<nav>$contents</nav>
<main>
$sections
$sample
$tables
<section id="provenance"><h2>Commands and versions</h2>$provenance</section>
</main>
<footer>Written by fas. The page holds everything it shows and asks no network for anything.</footer>
</body>
</html>
"""
)
