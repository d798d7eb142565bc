"""Findings about a tiny model, and a reader of pages, for the tests of the report."""

from __future__ import annotations

import functools
from dataclasses import replace
from html.parser import HTMLParser

import made
import torch
from tiny_models import FAMILIES

from fas.energy.bill import Hardware
from fas.energy.estimate import Estimate, count_both, levels_of
from fas.energy.prices import load_prices
from fas.reporting import measure
from fas.reporting.findings import Findings
from fas.types import Measurement

# A rate code: reports show online answers too.
converted = functools.partial(made.converted, neuron="signed_if")
MARGINS = (0.0, 0.5, 1.0, 4.0)


def loss(model, batch):
    """A score: mean negative log likelihood."""
    with torch.no_grad():
        logits = model(**batch).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten()))


@functools.cache
def findings() -> Findings:
    model, batch = converted(coverage="full"), FAMILIES["gpt2"].batch()
    counts = count_both(model, [batch], new_tokens=2)
    estimate = Estimate(*counts, levels_of(model), Hardware(load_prices("45nm")))
    whole = replace(estimate, spiking=count_both(model, [batch])[0], dense=count_both(model, [batch])[1])
    return Findings(
        name="tiny", facts={"coverage": "full", "neuron": "signed_if", "time steps": "4", "levels": "9"},
        score="perplexity",
        quality=measure.quality_over_time(model, lambda: loss(model, batch), [2, 4], [batch], whole),
        sites=measure.site_findings(model, [batch], measure.coarse_thresholds(model, [batch])),
        rasters=measure.rasters(model, batch, positions=5),
        agreement=0.5, estimates=[estimate, replace(estimate, hardware=Hardware(load_prices("loihi")))],
        exits=measure.early_exits(model, batch, MARGINS), command="fas report tiny", versions={"fas": "0.1"},
        seconds=3.0, data="nothing",
    )  # fmt: skip


def result(plan, timesteps, value, quantity="perplexity", network="snn", neuron="phase", **more):
    about = {"plan": plan, "coverage": "mlp", "neuron": neuron, "timesteps": timesteps, "network": network}
    return Measurement(quantity, value, "1", conditions={**about, "command": "fas compare <tiny>", **more})


def conversions():
    """Rows of two codes over T with spikes and energies."""
    rows = [result("dense", 0, 5.0, network="ann")]
    priced = {"accounting": "compute", "neuron": "phase"}
    rows.append(result("fas", 2, 4e6, "energy", energy_of="ann", **priced))
    for neuron, worse in (("phase", 1.0), ("signed_if", 1.5)):
        for steps in (2, 4):
            value = 5.0 + 2.0 * worse / steps
            rows.append(result("fas", steps, value, neuron=neuron))
            rows.append(result("fas", steps, steps * worse / 4, "spikes_per_neuron", neuron=neuron))
            cost = {**priced, "neuron": neuron}
            rows.append(result("fas", steps, 1e6 * steps * worse, "energy", energy_of="snn", **cost))
    return rows


def everything() -> Findings:
    """Findings with every part that a page can show."""
    found = findings()
    return replace(found, results=conversions(), sample=("def f(", "x):\n    return 1 < 2"))


class Page(HTMLParser):
    """Reads a page: its elements with attributes, its text, and whether every element is closed."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.open[-3:])

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for found, attributes in self.elements if found == tag]
