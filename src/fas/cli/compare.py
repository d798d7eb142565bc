"""``fas compare``: one model by several methods, codes and numbers of time steps, in one table."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from fas.cli._comparison import Plan, Row, compare_plans
from fas.cli._options import (
    BatchSize,
    Data,
    Device,
    Json,
    Model,
    Seed,
    TestData,
    TestTokens,
    Tokens,
    Window,
    whole_numbers,
    words,
)
from fas.cli._output import Output


def compare(
    context: typer.Context,
    model: Model,
    methods: Annotated[str, typer.Option(help="Recipes, files of fas.methods, separated by commas.")] = "fas",
    timesteps: Annotated[str, typer.Option(help="T, one or several.")] = "4,8",
    coverage: Annotated[str, typer.Option(help="mlp, linear, full: one or several.")] = "linear",
    neuron: Annotated[
        str | None, typer.Option(help="Neurons for the methods that let one choose, one or several.")
    ] = None,
    data: Data = None,
    test_data: TestData = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw score against spikes per neuron: a file ending in svg, png or pdf.")
    ] = None,
    tokens: Tokens = 16384,
    test_tokens: TestTokens = 16384,
    window: Window = None,
    batch_size: BatchSize = 8,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Convert a dense model in every combination, measure each, and show them side by side.

    Compare systems by levels and spikes per neuron, not by T alone. A combination that a method does not
    offer is left out, and said.

    Example: `fas compare embedded --methods fas --neuron signed_if,phase --timesteps 2,4,8 --plot build/compare.svg`
    """
    with Output.opened(context, as_json) as output:
        plans = _plans(output, words(methods), whole_numbers(timesteps, "--timesteps"), words(coverage), neuron)
        rows = compare_plans(
            output, model, plans, data=data, test_data=test_data, tokens=tokens, test_tokens=test_tokens,
            window=window, batch_size=batch_size, device=device, seed=seed, title="Comparison on",
        )  # fmt: skip
        if plot is not None:
            _draw(rows, plot)
            output.remark(f"drawn to {plot}")


def _plans(
    output: Output, methods: list[str], steps: list[int], coverages: list[str], neuron: str | None
) -> list[Plan]:
    from dataclasses import fields

    from fas import registry
    from fas.config import build_method

    plans: list[Plan] = []
    for name in methods:
        known = {field.name for field in fields(registry.load("methods", name))}
        choices: dict[str, list[Any]] = {
            "coverage": coverages,
            "neuron": words(neuron or ""),
            "timesteps": steps,
        }
        axes = {option: values for option, values in choices.items() if option in known and values}
        refused = []
        for values in product(*axes.values()):
            options = dict(zip(axes, values, strict=True))
            try:
                plans.append(Plan(name, build_method(name, options)))
            except ValueError as error:
                refused.append(str(error))
                output.remark(f"left out: {name} with {options}: {error}")
    if not plans:
        raise ValueError(f"no combination is possible: {refused[0] if refused else 'no method was named'}")
    return plans


def _draw(rows: list[Row], path: Path) -> None:
    """Draw the chief score against spikes per neuron, a line for each kind of network."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("--plot needs matplotlib: pip install 'fas[plot]'") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(row.kind, []).append(row)
    for kind, members in lines.items():
        points = sorted((row.spikes or 0.0, row.relation, row.timesteps) for row in members)
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], marker="o", label=kind)
        for x, y, steps in points:
            axes.annotate(f"T={steps}", (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.set_xlabel("spikes per neuron over the whole window")
    axes.set_ylabel(rows[0].relation_title)
    axes.axhline(1.0 if rows[0].score == "perplexity" else 0.0, color="grey", linewidth=0.8, linestyle="--")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
